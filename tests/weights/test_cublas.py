"""CTranslate2 finds the cuBLAS that pip installed."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from serve_app.models.loaders import load_cublas

CODE = """
import ctypes
from serve_app.models.loaders import load_cublas
try:
    ctypes.CDLL("libcublas.so.12")
    print("the system's")
except OSError:
    load_cublas()
    ctypes.CDLL("libcublas.so.12")
    print("pip's")
"""


@pytest.mark.skipif(find_spec("nvidia") is None, reason="pip has installed no CUDA libraries")
def test_ctranslate2_finds_the_cublas_that_pip_installed() -> None:
    """It asks the system for libcublas.so.12 by name, which knows nothing of pip's folders."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("pip's", "the system's")


def test_a_machine_without_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTranslate2 then says itself what it misses."""

    def missing(_: str) -> None:
        raise ModuleNotFoundError

    monkeypatch.setattr("serve_app.models.loaders.find_spec", missing)
    load_cublas()
