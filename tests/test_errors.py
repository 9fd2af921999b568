"""Errors survive the way between replicas and hold what the answer needs."""

import pickle

import pytest

from serve_app import errors


def every_error(base: type[errors.TranscriptionError]) -> list[type[errors.TranscriptionError]]:
    return [base, *(found for sub in base.__subclasses__() for found in every_error(sub))]


@pytest.mark.parametrize("kind", every_error(errors.TranscriptionError))
def test_every_error_survives_pickling(kind: type[errors.TranscriptionError]) -> None:
    """Message, parameter and code are the same on the other side."""
    error = pickle.loads(pickle.dumps(kind("What to do.", "language", "special")))
    assert type(error) is kind
    assert (error.message, error.param, error.code) == ("What to do.", "language", "special")
