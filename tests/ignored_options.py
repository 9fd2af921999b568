"""Runs the tests that docs/options.md names for each option, on a service that ignores that option.

A program of its own: each run is a fork of it, which has what all of them import.
"""

import os
import sys
from typing import Any

import pytest

from serve_app.options.fields import OptionFields
from tools.options import TESTS


def ignore(option: str) -> None:
    """From here on the option reads as if every request had left it out."""
    default = OptionFields.model_fields[option].default

    def read(options: OptionFields, name: str) -> Any:
        return default if name == option else object.__getattribute__(options, name)

    setattr(OptionFields, "__getattribute__", read)  # noqa: B010  (mypy forbids assigning to a method)


def outcome(option: str) -> int:
    """What pytest exits with: 1 where a test has failed."""
    child = os.fork()
    if child == 0:
        ignore(option)
        os._exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *TESTS[option]]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    unnoticed = [option for option in TESTS if outcome(option) != pytest.ExitCode.TESTS_FAILED]
    sys.exit(f"No test fails without {', '.join(unnoticed)}." if unnoticed else None)
