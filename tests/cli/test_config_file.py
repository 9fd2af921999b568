"""serve_config.yaml is read strictly: the error names the first wrong key."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app.cli import CommandFailed
from serve_app.cli.config_file import read, settings_table
from serve_app.settings import Settings

PROJECT = Path(__file__).parents[2]
BY_AUDIO = "serve_app.deployments.autoscaling:ByAudio"


def scale(raw: Any, max_replicas: int = 2, **policy: Any) -> None:
    """Autoscaling for the Transcriber; what is no key of Serve's policy is an argument of ours."""
    kwargs = {name: policy.pop(name) for name in [*policy] if name.startswith("audio")}
    policy = {"policy_function": BY_AUDIO, "policy_kwargs": kwargs} | policy
    entry = next(each for each in raw["applications"][0]["deployments"] if each["name"] == "Transcriber")
    entry["autoscaling_config"] = {"max_replicas": max_replicas, "policy": policy}
    del entry["num_replicas"]


def test_each_ingress_lets_in_what_the_last_transcriber_is_started_for(tmp_path: Path) -> None:
    """More Ingresses start for more requests, not for long files: only those that always run count."""
    raw = yaml.safe_load((PROJECT / "deploy" / "serve_config.autoscaling.yaml").read_text())
    application, path = raw["applications"][0], tmp_path / "config.yaml"
    ingress = next(each for each in application["deployments"] if each["name"] == "Ingress")
    assert ingress["autoscaling_config"]["max_replicas"] == 2
    for least, enough in ((1, 128), (2, 64)):  # 4 times 960 s, in windows of 30 s
        ingress["autoscaling_config"]["min_replicas"] = least
        application["args"]["windows_in_flight"] = enough
        path.write_text(yaml.safe_dump(raw))
        read(path)
        application["args"]["windows_in_flight"] = enough - 1
        path.write_text(yaml.safe_dump(raw))
        with pytest.raises(CommandFailed, match=f"set it to at least {enough}"):
            read(path)


@pytest.mark.parametrize(
    "name", ["Ingress", "AudioLoader", "SpeechDetector", "Transcriber", "Aligner", "JobRunner"]
)
def test_only_the_diarizer_may_go_to_zero(tmp_path: Path, name: str) -> None:
    """Requests, jobs and /readyz need the others: they would stop and start without any load."""
    raw = yaml.safe_load((PROJECT / "deploy" / "serve_config.autoscaling.yaml").read_text())
    deployments = raw["applications"][0]["deployments"]
    deployments[:] = [each for each in deployments if each["name"] != name]
    deployments.append({"name": name, "autoscaling_config": {"min_replicas": 0, "max_replicas": 2}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(CommandFailed, match=rf"\[{name}\]: min_replicas must be at least 1"):
        read(path)


def with_small(tmp_path: Path, entry: dict[str, Any], **small: Any) -> Path:
    """The shipped file with another model, and this entry for its deployment."""
    raw = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    application, path = raw["applications"][0], tmp_path / "config.yaml"
    application["args"]["models"] = {"small": small or None}
    application["deployments"].append({"name": "Transcriber-small", **entry})
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"num_replicas": 2},
        {"user_config": {"max_batch_size": 2}},
        {"autoscaling_config": {"min_replicas": 0, "max_replicas": 2}},
    ],
)
def test_another_model_has_an_entry_of_its_own(tmp_path: Path, entry: dict[str, Any]) -> None:
    """Replicas, batches, and scaling, also to zero, since no request needs it that does not name it."""
    read(with_small(tmp_path, entry))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"name": "Transcriber-medium"}, "there is no deployment Transcriber-medium; .*, Transcriber-small"),
        ({"user_config": {"batch": 2}}, r"\[Transcriber-small\].user_config: unknown key batch"),
        ({"ray_actor_options": {}}, "ray_actor_options would replace"),
        (
            {
                "autoscaling_config": {
                    "max_replicas": 7,
                    "policy": {"policy_function": BY_AUDIO, "policy_kwargs": {"audio_s_per_replica": 960}},
                }
            },
            "7 replicas of Transcriber-small, 960 s each; set it to at least 224",
        ),
    ],
)
def test_what_is_wrong_with_another_model_s_entry_is_said(
    tmp_path: Path, entry: dict[str, Any], says: str
) -> None:
    """As for every deployment."""
    with pytest.raises(CommandFailed, match=says):
        read(with_small(tmp_path, entry))


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"large-v2": {}}, "this is `model` already"),
        ({"/models/small": {}}, "a directory stands under it"),
        ({"a b": {}}, "a name has letters"),
        ({"a/b/c": {}}, "a name has letters"),
        ({"": {}}, "a name has letters"),
        ({"a/b": {}, "a-b": {}}, "models.a-b: it is too like a/b"),
        ({"small": {"window_s": 10}}, "set asr.window_s"),
        ({"small": {"beam": 1}}, "models.small.beam"),
        ({"small": {"beam_size": 0}}, "models.small.beam_size"),
        ({"small": {"temperature_fallback": [0.4, 0.2]}}, "must rise"),
    ],
)
def test_names_and_settings_of_models_are_checked(models: dict[str, Any], says: str) -> None:
    """What could not be, or would be without effect."""
    with pytest.raises(ValidationError, match=says):
        Settings.model_validate({"models": models})


def test_another_model_has_the_settings_of_asr_but_for_its_own() -> None:
    """The first one keeps those of asr."""
    asr = {"beam_size": 3, "compute_type": "int8", "gpu_share": 0.4}
    small = {"model": "small.en", "beam_size": 1, "gpu_share": 0.2}
    settings = Settings.model_validate({"asr": asr, "models": {"english": small, "base": None}})
    english, base = settings.asr_of("english"), settings.asr_of("base")
    assert (english.beam_size, english.compute_type, english.gpu_share) == (1, "int8", 0.2)
    assert base == settings.asr_of("large-v2") == settings.asr
    assert [settings.model_of(name) for name in ("english", "base", "large-v2")] == [
        "small.en",
        "base",
        "large-v2",
    ]


@pytest.mark.parametrize(
    "name", ["serve_config.yaml", "serve_config.demo.yaml", "deploy/serve_config.autoscaling.yaml"]
)
def test_the_shipped_files_are_right(name: str) -> None:
    """All of them pass their own check."""
    assert read(PROJECT / name)["applications"][0]["import_path"] == "serve_app.app:build"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(http_option={}), "unknown key http_option"),
        (lambda raw: raw["http_options"].update(prot=1), "unknown key http_options.prot"),
        (lambda raw: raw["applications"][0].update(arg={}), "unknown key applications.0.arg"),
        (lambda raw: raw["applications"][0]["args"].update(modle="x"), "unknown key modle"),
        (lambda raw: raw["applications"][0]["args"]["asr"].update(beam=1), "unknown key asr.beam"),
        (lambda raw: raw["applications"][0]["args"].update(device="tpu"), "device"),
        (lambda raw: raw["applications"][0]["args"].update(speech={"onset": 0.2}), "speech.offset"),
        (
            lambda raw: raw["applications"][0]["args"].update(
                alignment={"method": "attention", "preload": ["en"]}
            ),
            "alignment.preload is for wav2vec2",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"].append({"name": "Aligner", "num_replica": 2}),
            "unknown key applications.0.deployments.4.num_replica",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"].append(
                {"name": "Aligner", "autoscaling_config": {"max_replica": 2}}
            ),
            "unknown key max_replica",
        ),
        (lambda raw: scale(raw, policy_functio=BY_AUDIO), "unknown key policy_functio"),
        (lambda raw: scale(raw, policy_function="serve_app.scaling:ByAudio"), "No module named"),
        (lambda raw: scale(raw, policy_function=f"{BY_AUDIO}s"), "ByAudios"),
        (lambda raw: scale(raw, audio_s=960), "audio_s"),
        (lambda raw: scale(raw, audio_s_per_replica=0), "must be above 0"),
        (
            lambda raw: scale(raw, audio_s_per_replica=960, max_replicas=7),
            "set it to at least 224",  # 7 times 960 s, in windows of 30 s
        ),
        (
            lambda raw: raw["applications"][0]["deployments"].append(
                {"name": "Transcriber", "user_config": {"batch_size": 2}}
            ),
            "unknown key batch_size",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"].append(
                {"name": "Aligner", "user_config": {"max_batch_size": 0}}
            ),
            "max_batch_size",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"].append({"name": "Diarizer", "user_config": {}}),
            "Diarizer has no user_config",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"].append(
                {"name": "Diarizer", "ray_actor_options": {"num_cpus": 2}}
            ),
            "ray_actor_options would replace",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"].append({"name": "Diariser"}),
            "no deployment Diariser",
        ),
        (lambda raw: raw["applications"][0].update(deployments=[3]), "where a mapping must be"),
        (
            lambda raw: raw["applications"][0].update(
                import_path="serve_app.app.build",
                args={"modle": "x"},  # Ray takes the dot, too
            ),
            "unknown key modle",
        ),
        (
            lambda raw: raw["applications"][0]["args"].update(
                alignment={"preload": ["en", "de", "fr", "es"]}
            ),
            "alignment.preload",
        ),
        (
            lambda raw: raw["applications"][0]["args"].update(
                openai={"aliases": {"mine": {"diarise": True}}}
            ),
            "args.openai.aliases: mine: diarise: unknown field",
        ),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, change: Any, says: str) -> None:
    """Keys are misspelt at every level of the file; Serve itself would accept them silently."""
    raw = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    change(raw)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(CommandFailed, match=says):
        read(path)


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("intake", {"allowed_hosts": ["https://media.internal/x"]}, "intake.allowed_hosts.0: write one host"),
        ("intake", {"allowed_hosts": ["a.internal", "10.0.0.0/8"]}, "intake.allowed_hosts.1: write one host"),
        ("intake", {"allowed_hosts": ["*.internal"]}, "host:port"),
        ("intake", {"allowed_hosts": ["media.internal:"]}, "host:port"),
        ("intake", {"allowed_hosts": [""]}, "host:port"),
        ("access", {"cors_origins": ["https://page.example/"]}, "access.cors_origins.0: write an origin"),
        ("access", {"cors_origins": ["https://page.example/app"]}, "https://example.com"),
        ("access", {"cors_origins": ["https://Page.example"]}, "lower case"),
        ("access", {"cors_origins": ["https://*.example"]}, "https://example.com"),
        ("access", {"cors_origins": ["page.example"]}, "https://example.com"),
        ("intake", {"max_audio_s": float("inf")}, "intake.max_audio_s"),
        ("intake", {"max_audio_s": 1e305}, "intake.max_audio_s"),
        ("intake", {"decode_timeout_s": float("inf")}, "intake.decode_timeout_s"),
        ("intake", {"fetch_timeout_s": float("nan")}, "intake.fetch_timeout_s"),
        ("alignment", {"max_padded_s": float("inf")}, "alignment.max_padded_s"),
    ],
)
def test_a_value_that_could_never_work_is_named(
    tmp_path: Path, section: str, values: dict[str, Any], says: str
) -> None:
    """Hosts and origins that can match nothing and infinite times are refused with the form that works."""
    raw = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    raw["applications"][0]["args"][section] = values
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(CommandFailed, match=re.escape(says)):
        read(path)


def test_hosts_and_origins_in_their_right_form_are_taken() -> None:
    """Names and addresses, with and without a port, are accepted, and so are origins of apps."""
    hosts = ["media.internal", "my_host:9000", "10.0.0.7", "10.0.0.7:80", "::1", "[::1]", "[fe80::1]:9000"]
    origins = ["https://page.example", "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost"]
    settings = Settings.model_validate(
        {"intake": {"allowed_hosts": hosts}, "access": {"cors_origins": origins}}
    )
    assert [*settings.intake.allowed_hosts] == hosts
    assert [*settings.access.cors_origins] == origins


@pytest.mark.parametrize(
    ("http_options", "access", "refused"),
    [
        ({"host": "127.0.0.1"}, {}, False),
        ({"host": "localhost"}, {}, False),
        ({"host": "0.0.0.0"}, {}, True),
        ({"host": "::"}, {}, True),
        ({"host": "192.168.1.5"}, {}, True),
        ({"host": "myhost"}, {}, True),
        (None, {}, True),  # Serve's own default is 0.0.0.0
        ({"host": "0.0.0.0"}, {"public_without_keys": True}, False),
        ({"host": "0.0.0.0"}, {"keys": [{"name": "acme", "sha256": "0" * 64}]}, False),
    ],
)
def test_no_public_address_without_keys(
    tmp_path: Path, http_options: dict[str, Any] | None, access: dict[str, Any], refused: bool
) -> None:
    """A public host is refused with advice, unless there are keys or the operator allows it."""
    raw = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    raw["http_options"] = http_options or {}
    raw["applications"][0]["args"]["access"] = access
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    if not refused:
        read(path)
        return
    with pytest.raises(CommandFailed, match=r"127\.0\.0\.1.*keys.*public_without_keys"):
        read(path)


def test_files_that_are_no_config_say_so(tmp_path: Path) -> None:
    """A missing file, broken YAML, audio and a list each have a sentence of their own."""
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    listing = tmp_path / "list.yaml"
    listing.write_text("- a")
    audio = tmp_path / "talk.wav"
    audio.write_bytes(b"RIFF\xff\xff")
    for path, says in (
        (tmp_path / "none.yaml", "No such file"),
        (broken, "not valid YAML"),
        (audio, "not valid YAML"),
        (listing, "mapping"),
    ):
        with pytest.raises(CommandFailed, match=says):
            read(path)


@pytest.mark.parametrize("temperatures", [[0.0], [0.4, 0.2], [0.2, 0.2], [1.5], [float("nan")]])
def test_fallback_temperatures_must_rise(temperatures: list[float]) -> None:
    """Temperatures that cannot help or would overflow are refused; an empty list is whisperx's way."""
    with pytest.raises(ValidationError, match="temperature_fallback"):
        Settings.model_validate({"asr": {"temperature_fallback": temperatures}})
    assert Settings.model_validate({"asr": {"temperature_fallback": []}}).asr.temperature_fallback == ()


def test_settings_refuse_what_they_do_not_know() -> None:
    """The builder's argument is strict by itself, also without the command line."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings.model_validate({"modle": "large-v2"})


def test_the_settings_table_has_a_row_for_each_setting() -> None:
    """Names of nested settings have dots; an empty default is an empty cell."""
    rows = dict(row.strip("| ").split(" | ", 1) for row in settings_table().splitlines()[2:])
    assert rows["`model`"].startswith("large-v2 | ")
    assert rows["`asr.temperature_fallback`"].startswith("[0.2, 0.4, 0.6, 0.8, 1.0] | ")
    assert rows["`alignment.models`"].startswith(" | ")
    assert "`asr`" not in rows
