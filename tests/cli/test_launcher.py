"""The launcher keeps audio on disk private, finds a free port, and stops in sentences."""

import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from serve_app.cli import CommandFailed, launcher
from serve_app.cli.doctor import weights
from serve_app.cli.doctor.devices import Devices
from serve_app.cli.launcher import _drain, _go_offline_if_the_hub_is_silent, _say_if_offline, free_port
from serve_app.cli.local_ray import SPILL_PREFIX, spill_folder
from serve_app.models import hub
from serve_app.models import names as model_names
from serve_app.settings import Settings


def test_spilled_audio_is_private_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is closed to other users and removed at the end, and so are folders of killed servers.

    The folder of another running server stays.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{SPILL_PREFIX}abandoned"
    left.mkdir()
    (left / "recording").write_bytes(b"private")
    with spill_folder() as first:
        assert list(tmp_path.iterdir()) == [Path(first)]
        assert Path(first).stat().st_mode & 0o777 == 0o700
        (Path(first) / "recording").write_bytes(b"private")
        with spill_folder() as second:
            assert {str(folder) for folder in tmp_path.iterdir()} == {first, second}
        assert (Path(first) / "recording").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_its_place_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user may write to the temporary directory, so a name there does not prove who made it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "tmp" / f"{SPILL_PREFIX}link").symlink_to(precious)
    with spill_folder():
        assert precious.exists()


def test_a_port_that_somebody_listens_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A taken port is never chosen; where all are taken, the start fails."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setattr(launcher, "PORTS", range(port, port + 1))
        with pytest.raises(CommandFailed):
            free_port()
    assert free_port() == port


@pytest.mark.parametrize(
    ("device", "gpus", "is_said"),
    [("cpu", (), True), ("auto", (), True), ("auto", ("T4",), False), ("cuda", ("T4",), False)],
)
def test_models_that_do_not_fit_in_memory_are_named_at_the_start(
    device: str,
    gpus: tuple[str, ...],
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever they run on a CPU; a machine without a GPU needs no setting for that."""
    monkeypatch.setattr(launcher, "ask_driver", lambda: Devices(driver_gpus=gpus))
    monkeypatch.setattr(weights, "free_memory", lambda: 1)
    monkeypatch.setattr(model_names, "resolve", lambda settings: model_names.Models("base", "base", {}, None))
    launcher._refuse_missing_models([Settings.model_validate({"model": "base", "device": device})])
    assert ("The weights of the recognisers alone need" in capsys.readouterr().err) == is_said


def test_a_silent_hub_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hub that takes no connection is reported in one line, and then no hub is asked any more."""
    monkeypatch.setenv(hub.OFFLINE, "")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        _go_offline_if_the_hub_is_silent()
        _say_if_offline()
        assert capsys.readouterr().err == ""
    hub._probed.clear()
    _go_offline_if_the_hub_is_silent()
    _say_if_offline()
    assert capsys.readouterr().err == (
        f"Offline: {url} does not answer, so only models on this machine are used.\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not hub.answers(f"http://127.0.0.1:{listener.getsockname()[1]}")


GRACE_S = 7.0


class Application:
    """Stands in for a handle whose Ingresses give these answers to a broadcast, or for one that raises."""

    def __init__(self, answers: list[Any] | Exception) -> None:
        self.answers = answers
        self.asked: list[tuple[Any, ...]] = []

    @property
    def drain(self) -> "Application":
        return self

    def remote(self, timeout_s: float) -> "Application":
        return self

    def result(self, *, timeout_s: float) -> bool:
        return False

    def broadcast(self, *asked: Any) -> "Application":
        self.asked.append(asked)
        return self

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert timeout_s >= GRACE_S
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([True, True], ""),
        ([True, False], "still running"),
        ([True, ActorDiedError()], "ActorDiedError"),
        (TimeoutError(), "still running"),
        (RuntimeError("gone"), "RuntimeError"),
    ],
)
def test_stopping_ends_in_sentences(
    answers: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every Ingress is asked once; a dead or hanging one is reported and delays no other."""
    applications = {"first": Application(answers), "second": Application([True])}
    monkeypatch.setattr("serve_app.cli.launcher.serve.get_app_handle", lambda name: applications[name])
    _drain(["gone", *applications], GRACE_S)
    told = "".join(capsys.readouterr())
    assert [application.asked for application in applications.values()] == [[("drain", GRACE_S)]] * 2
    assert "gone: an Ingress could not end" in told
    assert said in told
    assert ("first" in told) == bool(said)
    assert "second" not in told
