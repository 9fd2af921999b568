"""Python and packages: are they what the installed metadata asks for, and can they be imported?"""

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from serve_app.cli import INSTALL
from serve_app.cli.doctor.checks import Check, Finding, Subject, fine, skipped, warning, wrong
from serve_app.cli.doctor.devices import Devices

DISTRIBUTION = "whisperx-serve"
NOT_INSTALLED = f"{DISTRIBUTION} is not installed as a package, so what it needs is not known here."


def checks(subject: Subject) -> list[Check]:
    return [
        Check("Python", lambda: python(platform.python_version(), _metadata("Requires-Python"))),
        Check("Packages", lambda: packages(requirements())),
        Check("torch and CTranslate2", lambda: model_packages(subject.devices())),
    ]


def requirements() -> list[str] | None:
    """What the installed package needs, its extras included; None where it is not installed as a package."""
    try:
        return metadata.requires(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def python(version: str, required: str | None) -> Finding:
    """This Python is one that the service is made for."""
    if required is None:
        return skipped(NOT_INSTALLED)
    if version not in SpecifierSet(required):
        return wrong(
            f"Python {version} is not supported; make an environment with a Python that is {required}."
        )
    return fine(f"Python {version}.")


def packages(required: list[str] | None) -> Finding:
    """Every package that the server needs is there, in a version that it was made for."""
    if required is None:
        return skipped(NOT_INSTALLED)
    asked = [Requirement(each) for each in required]
    needed = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": "server"})]
    if unfit := [*_unfit(needed)]:
        return wrong(f"{'; '.join(unfit)}; install what is asked for: {INSTALL}.")
    pinned = [f"{each.name} {metadata.version(each.name)}" for each in needed if "==" in str(each.specifier)]
    return fine(f"{len(needed)} packages are as asked for, among them {', '.join(pinned) or 'none pinned'}.")


def _unfit(needed: list[Requirement]) -> Iterator[str]:
    for each in needed:
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            yield f"{each.name} is missing"
        else:
            if not each.specifier.contains(version, prereleases=True):
                yield f"{each.name} is {version} instead of {each.specifier}"


def model_packages(devices: Devices) -> Finding:
    """torch and CTranslate2 can be imported."""
    if devices.is_late:
        return warning(f"Not tried to the end: {devices.torch_error}; run doctor again on a quieter machine.")
    failures = {"torch": devices.torch_error, "CTranslate2": devices.ctranslate2_error}
    said = [f"{name} cannot be used ({why})" for name, why in failures.items() if why]
    if said:
        return wrong(f"{', '.join(said)}; install them again: {INSTALL}.")
    return fine(f"torch {devices.torch} and CTranslate2 {devices.ctranslate2} can be imported.")


def _metadata(key: str) -> str | None:
    try:
        return metadata.metadata(DISTRIBUTION)[key]
    except metadata.PackageNotFoundError:
        return None
