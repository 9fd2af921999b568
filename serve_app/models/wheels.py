"""Files out of wheels of a package registry.

A wheel is only ever a zip file here: pip downloads it (no dependencies, hash required, nothing built or
installed), the named members are copied out, and its code is never imported.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from zipfile import ZipFile

from serve_app.models.catalogue import File, Wheel
from serve_app.models.store import is_intact

SCRATCH = ".wheels"  # where they lie until the model is complete
ASK_S = 4.0  # for a connection to a package index
PATIENCE_S = 30.0  # until pip must have begun to receive a wheel
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SourceFailed(Exception):
    """A source that did not give the files; the message says why."""


def take_out(files: Mapping[str, File], archives: Sequence[Path], folder: Path) -> None:
    """Writes each file from its members, joined, into the folder."""
    with ExitStack() as stack:
        opened = [stack.enter_context(ZipFile(path)) for path in archives]
        for name, file in files.items():
            with (folder / name).open("wb") as target:
                for member in file.members:
                    archive = next(archive for archive in opened if member in archive.namelist())
                    with archive.open(member) as part:
                        shutil.copyfileobj(part, target, 1 << 20)


def download(wheel: Wheel, scratch: Path) -> Path:
    """Downloads the wheel by pip, with the machine's own configuration, unless it is there already."""
    folder = scratch / wheel.name
    for path in folder.glob("*.whl"):
        if is_intact(path, File(size=wheel.size, sha256=wheel.sha256)):
            return path
        path.unlink()
    temporary = folder / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    requirement = f"{wheel.name}=={wheel.version}"
    (folder / "requirements.txt").write_text(f"{requirement} --hash=sha256:{wheel.sha256}\n")
    command = [*_pip("download", wheel), "--quiet", "--retries=1", "--no-deps", "--require-hashes"]
    command += [f"--dest={folder}", f"--requirement={folder / 'requirements.txt'}"]
    with (folder / "pip.log").open("w+") as log:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # noqa: S603
        try:
            if _waited(pip, PATIENCE_S) is None:
                if not list(temporary.rglob("*.whl")):
                    raise SourceFailed(f"no package index gave {requirement} in {PATIENCE_S:g} s")
                pip.wait()
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        said = log.read()
    if pip.returncode == 0:
        return next(folder.glob("*.whl"))
    for number in FULL_DISK:
        if os.strerror(number) in said:
            raise OSError(number, os.strerror(number))
    if "No module named pip" in said:
        raise SourceFailed("this Python has no pip; `python -m ensurepip` adds it")
    if "DO NOT MATCH THE HASHES" in said:
        raise SourceFailed(f"a package index has another {requirement}, whose hash is wrong")
    raise SourceFailed(f"pip found no {requirement} in the package indexes of this machine")


def is_offered(wheel: Wheel) -> bool:
    """Whether a package index, by the machine's own configuration of pip, has it; nothing is downloaded."""
    command = [*_pip("index", wheel), "--retries=0", f"--timeout={ASK_S:g}", "versions", wheel.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * ASK_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return False
    offered = re.search("^Available versions: (.*)", done.stdout, re.MULTILINE)
    return offered is not None and wheel.version in offered[1].split(", ")


def _pip(command: str, wheel: Wheel) -> list[str]:
    """One of pip's commands, about wheels alone."""
    found = [sys.executable, "-m", "pip", command, "--no-input", "--only-binary=:all:"]
    found += ["--no-cache-dir", "--disable-pip-version-check"]
    if wheel.platform:  # a wheel with compiled code; it is only unzipped, so another platform's will do
        found += [f"--platform={wheel.platform}", f"--python-version={wheel.python}"]
    return found


def _waited(process: "subprocess.Popen[bytes]", timeout_s: float) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout_s)
    return None
