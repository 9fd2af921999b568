"""The service that `transcribe` starts when no --server is given."""

import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve_app.cli import INSTALL, CommandFailed

# Flags for the service that this command starts, and their keys in the args of its config.
SETTINGS = {
    "model": ("model",),
    "model_dir": ("models_dir",),
    "device": ("device",),
    "compute_type": ("asr", "compute_type"),
    "chunk_size": ("asr", "window_s"),
    "vad_method": ("speech", "method"),
    "diarize_model": ("diarization", "model"),
}


def models_beside(config: Path | None) -> Collection[str]:
    """The names of `models` in the config file of this service. Raises CommandFailed."""
    if config is None or find_spec("ray") is None:
        return ()
    from serve_app.cli import config_file

    return [name for each in config_file.settings_of(config_file.read(config)) for name in each.models]


@contextmanager
def own_service(
    config: Path | None, chosen: Mapping[str, Any], *, is_aligning: bool, is_diarizing: bool, jobs: int
) -> Iterator[tuple[str, threading.Event]]:
    """Starts the service; yields its URL, and the event that is set when the user stops the run.

    `chosen` has the values of flags of SETTINGS. Raises CommandFailed.
    """
    if find_spec("ray") is None:
        raise CommandFailed(
            f"a service cannot be started here; name a running one by --server URL, or {INSTALL}."
        )
    from serve_app.cli import config_file
    from serve_app.cli.launcher import free_port, running, url_of

    path = config or config_file.DEMO_CONFIG
    raw = config_file.read(path)
    ours = config_file.own_applications(raw)
    if len(ours) != 1:
        raise CommandFailed(f"{path} has {len(ours)} applications of this service; one is needed.")
    with tempfile.TemporaryDirectory(prefix="whisperx-serve-jobs-") as state:
        args = ours[0].setdefault("args", {})
        args.pop("access", None)  # only this machine can reach it
        args["jobs"] = {"state_dir": state, "concurrency": jobs}
        if not is_aligning:
            args["alignment"] = {"method": "off"}
        if not is_diarizing:
            args["diarization"] = {"model": "off"}
        for name, value in chosen.items():
            *parents, last = SETTINGS[name]
            place = args
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = str(value.absolute()) if isinstance(value, Path) else value
        if args.get("asr", {}).get("compute_type") == "default":  # whisperx's name for it
            args["asr"]["compute_type"] = "auto"
        raw["http_options"] = {"host": "127.0.0.1", "port": free_port()}
        config_file.check(raw, path)
        with running(raw, show_logs=False) as stop:
            prefix = ours[0].get("route_prefix") or "/"
            yield url_of(raw) + prefix.rstrip("/"), stop
