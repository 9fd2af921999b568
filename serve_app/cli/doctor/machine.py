"""The machine: limits of the kernel, shared memory, the decoder, ports, the temporary folder."""

import os
import resource
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage

import imageio_ffmpeg
import psutil

from serve_app.cli.doctor.checks import Application, Check, Finding, Subject, fine, skipped, warning, wrong
from serve_app.settings import Settings
from serve_app.stages.audio.ffmpeg_sandbox import tried_namespace_command

GB = 1e9

SHM = "/dev/shm"  # noqa: S108  (where Ray keeps its object store)
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_THREADS = Path("/sys/fs/cgroup/pids.max")  # it counts threads, too

# Ray 2.60: the part of the free memory that its object store takes, and how far /dev/shm limits that.
OBJECT_STORE_PART, LEAST_CAP_BYTES = 0.3, 10_000_000_000
AUDIO_BYTES_PER_S = 32_000  # of decoded audio, docs/configuration.md

RAY_RAISES_TO = 65_536  # the soft limit of open files, where the hard one allows it
GOOD_OPEN_FILES, LEAST_OPEN_FILES = 8192, 1024
GOOD_THREADS = 4096  # each of Ray's processes has dozens

FFMPEG_S = 8.0

RAY_PORTS = {  # Ray 2.60's, and the options that change them
    6379: "--port",
    8265: "--dashboard-port",
    10001: "--ray-client-server-port",
    52365: "--dashboard-agent-listen-port",
}


def checks(subject: Subject) -> list[Check]:
    return [
        Check("Limits", limits),
        Check("Shared memory", lambda: shared_memory(subject.settings)),
        Check("ffmpeg", decoder),
        Check("HTTP port", lambda: port(subject.application)),
        Check("Metrics port", lambda: metrics_port(subject.metrics_port)),
        Check("Cluster ports", cluster_ports),
        Check("Temporary folder", lambda: temporary_folder(subject.settings.intake.max_bytes)),
    ]


def limits() -> Finding:
    """Enough open files and threads. Ray raises the soft limit of open files as far as it may."""
    soft, hard = (_number(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    files = max(soft, min(hard, RAY_RAISES_TO))
    threads = _number(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    remedy = "raise it (ulimit -n 65536; in containers --ulimit nofile=65536:65536)"
    if files < LEAST_OPEN_FILES:
        return wrong(f"A process may open {files} files, too few for Ray and 256 requests; {remedy}.")
    if files < GOOD_OPEN_FILES:
        return warning(f"A process may open {files} files, and Ray wants {GOOD_OPEN_FILES}; {remedy}.")
    with suppress(OSError, ValueError):  # no limit, which reads "max"
        if (allowed := int(CGROUP_THREADS.read_text())) < GOOD_THREADS:
            return warning(
                f"This container may have {allowed} threads, and a service has thousands; give it "
                f"{GOOD_THREADS} or more (--pids-limit, on Kubernetes the kubelet's podPidsLimit)."
            )
    if threads < GOOD_THREADS:
        return warning(
            f"This user may have {threads} threads (ulimit -u), and a service has thousands; raise it to "
            f"{GOOD_THREADS} or more."
        )
    return fine(f"A process may open {files} files.")


def _number(limit: int) -> int:
    return 1 << 31 if limit == resource.RLIM_INFINITY else limit


def shared_memory(settings: Settings, place: str = SHM) -> Finding:
    """Ray's object store, which holds the audio, fits in shared memory and holds what may be in flight."""
    free = disk_usage(place).free
    part = int(free_memory() * OBJECT_STORE_PART)
    store = min(part, max(LEAST_CAP_BYTES, int(free * 0.95)))
    if store > free:
        return warning(
            f"{place} has {free / GB:.2f} GB free, so Ray would put its object store ({store / GB:.1f} GB) "
            "on the disk, which is slow; in containers give it more with --shm-size, in Kubernetes with an "
            "emptyDir of medium Memory."
        )
    audio = settings.intake.audio_in_flight_s * AUDIO_BYTES_PER_S
    if audio > store:
        return warning(
            f"The audio in flight may need {audio / GB:.1f} GB, and Ray's object store will have "
            f"{store / GB:.1f} GB, so audio is spilled to the disk; lower intake.audio_in_flight_s to "
            f"{store // AUDIO_BYTES_PER_S}, or add memory."
        )
    return fine(f"{place} has {free / GB:.1f} GB free; Ray's object store will have {store / GB:.1f} GB.")


def free_memory() -> int:
    """Of the machine, or of the container where that has a limit."""
    found = psutil.virtual_memory()
    total = int(found.total)
    with suppress(OSError, ValueError):  # no limit, which reads "max"
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return max(0, min(int(found.available), total))


def decoder() -> Finding:
    """ffmpeg starts, and whether it can be cut off from the network."""
    remedy = "install imageio-ffmpeg again, or let IMAGEIO_FFMPEG_EXE name an ffmpeg"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return wrong(f"There is no ffmpeg, so no audio can be decoded; {remedy}.")
    try:
        done = subprocess.run(  # noqa: S603
            [program, "-version"], capture_output=True, text=True, timeout=FFMPEG_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return wrong(f"{program} does not start ({type(error).__name__}); {remedy}.")
    version = " ".join(done.stdout.split(maxsplit=3)[:3])
    try:
        tried_namespace_command()
    except (OSError, subprocess.SubprocessError):
        return fine(f"{version}; this kernel or container does not let it run without a network.")
    return fine(f"{version}; it runs without a network.")


def port(application: Application) -> Finding:
    """Checks that the HTTP port is free."""
    if not application.has_proxy:
        return skipped("proxy_location: Disabled has no HTTP port.")
    return _free(application.host, application.port, "http_options")


def metrics_port(number: int) -> Finding:
    """Checks that the port for Ray's metrics is free."""
    if not number:
        return skipped("Without --metrics-port Ray takes a free one.")
    return _free("0.0.0.0", number, "--metrics-port")  # noqa: S104  (where Ray listens)


def _free(host: str, number: int, setting: str) -> Finding:
    place = f"{host}:{number}"
    if why := _why_taken(host, number):
        return wrong(
            f"Nothing can listen on {place} ({why}); stop what uses it, which may be this service itself, "
            f"or set {setting}."
        )
    return fine(f"{place} is free.")


def cluster_ports() -> Finding:
    """Ray's usual ports are free for `ray start`; `serve`, whose Ray is its own, needs none of them."""
    if any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        return skipped("Ray runs on this machine already, so they are not tried.")
    if taken := [f"{number} ({option})" for number, option in RAY_PORTS.items() if _why_taken("", number)]:
        return warning(
            f"Something else listens on {', '.join(taken)}; where this machine is to be a node of a cluster, "
            "stop it or give `ray start` that option."
        )
    return fine(f"{', '.join(map(str, RAY_PORTS))} are free, should this be a node of a cluster.")


def _why_taken(host: str, number: int) -> str:
    """Why nothing can listen there, or nothing where something can."""
    try:
        socket.create_server((host, number)).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno and error.errno > 0 else "no such host"
    return ""


def temporary_folder(needed_bytes: int) -> Finding:
    """Uploads and Ray's session can be written."""
    ray = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return folders({"TMPDIR": tempfile.gettempdir(), "RAY_TMPDIR": ray}, needed_bytes)


def folders(places: dict[str, str], needed_bytes: int) -> Finding:
    """Files can be written in these folders, or they can be made, and the largest upload fits there."""
    for setting, place in places.items():
        if why := why_not_writable(Path(place)):
            return wrong(f"{place} ({setting}) cannot be written ({why}); make it writable or set {setting}.")
    for setting, place in places.items():
        free = disk_usage(nearest(Path(place))).free
        if free < needed_bytes:
            return warning(
                f"{place} ({setting}) has {free / GB:.1f} GB free, and one upload may have "
                f"{needed_bytes / GB:.1f} GB (intake.max_bytes); free some, or set {setting} to another disk."
            )
    return fine(f"{_joined(places.values())} can be written, with {_least_free(places) / GB:.0f} GB free.")


def nearest(folder: Path) -> Path:
    """The folder, or the closest one above it that is there and may be seen."""
    return next(each for each in (folder, *folder.parents) if os.path.exists(each))


def why_not_writable(folder: Path) -> str:
    """Why no file can be made in the folder, or nothing where one can; it is made when it is needed."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return ""
    except OSError as error:
        return os.strerror(error.errno or 0)


def _joined(places: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(places))


def _least_free(places: dict[str, str]) -> int:
    return min(disk_usage(nearest(Path(place))).free for place in places.values())
