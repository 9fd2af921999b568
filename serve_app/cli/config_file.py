"""Reads serve_config.yaml strictly, because Serve accepts misspelt keys silently; lists the settings."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, ProxyLocation
from ray.serve.schema import ServeDeploySchema

from serve_app.cli import CommandFailed
from serve_app.deployments import USER_CONFIGS
from serve_app.deployments.transcriber import PADDED_S
from serve_app.errors import InvalidRequest
from serve_app.http.auth import is_loopback
from serve_app.http.model_names import ModelNames
from serve_app.http.openai.request import check_aliases
from serve_app.settings import Settings
from serve_app.settings.access import AccessSettings
from serve_app.settings.asr import deployment_of

Model = TypeVar("Model", bound=BaseModel)

IMPORT_PATH = "serve_app.app:build"
ALWAYS_NEEDED = USER_CONFIGS.keys() - {"Diarizer"}

# A wheel has the file next to this module, the repository has it at its root.
_WHEELS_DEMO_CONFIG = Path(__file__).with_name("serve_config.demo.yaml")
DEMO_CONFIG = (
    _WHEELS_DEMO_CONFIG
    if _WHEELS_DEMO_CONFIG.exists()
    else Path(__file__).parents[2] / _WHEELS_DEMO_CONFIG.name
)


def read(path: Path) -> dict[str, Any]:
    """Returns the file's content, checked key by key. Raises CommandFailed naming the first wrong key."""
    try:
        raw = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise CommandFailed(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise CommandFailed(f"{path} does not hold a mapping; see serve_config.yaml in the project.")
    check(raw, path)
    return raw


def check(raw: dict[str, Any], path: Path) -> None:
    """Checks the content of the file at `path`. Raises CommandFailed naming the first wrong key."""
    schema = _validate(ServeDeploySchema, raw, str(path))
    for application in raw.get("applications") or ():
        place = f"{path}: applications[{application.get('name', '')}]"
        if application["import_path"] == "serve_app.app.build":  # Ray accepts both
            application["import_path"] = IMPORT_PATH
        if application["import_path"] == IMPORT_PATH:  # args of other applications are not ours to check
            settings = _validate(Settings, application.get("args") or {}, f"{place}.args")
            _check_aliases(settings, place)
            user_configs = USER_CONFIGS | {
                deployment_of(name): USER_CONFIGS["Transcriber"] for name in settings.models
            }
            if schema.proxy_location != ProxyLocation.Disabled:
                _refuse_wrong_host(schema.http_options.host, settings.access, path)
            found = application.get("deployments") or ()
            for deployment in found:
                _check_deployment(deployment, user_configs, place)
            _refuse_replicas_that_never_start(found, settings.windows_in_flight, place)


def settings_of(raw: dict[str, Any]) -> list[Settings]:
    """The settings of each application of this service in a file's content."""
    return [Settings.model_validate(each.get("args") or {}) for each in own_applications(raw)]


def own_applications(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The applications of this service in a file's content."""
    return [each for each in raw.get("applications") or () if each["import_path"] == IMPORT_PATH]


def _check_aliases(settings: Settings, place: str) -> None:
    try:
        check_aliases(ModelNames(settings.model, settings.openai.names(), settings.models))
    except InvalidRequest as error:
        raise CommandFailed(f"{place}.args.{error.message}") from None


def _refuse_wrong_host(host: str, access: AccessSettings, path: Path) -> None:
    others = [network for network in access.trusted_networks if not is_loopback(network.partition("/")[0])]
    if others and is_loopback(host):
        raise CommandFailed(
            f"{path}: args.access.trusted_networks: no machine of {others[0]} reaches http_options.host "
            f"{host}; set it to 0.0.0.0."
        )
    if not (access.keys or access.trusted_networks or access.public_without_keys or is_loopback(host)):
        raise CommandFailed(
            f"{path}: http_options.host {host} lets other machines in, and there are no API keys. Set it to "
            "127.0.0.1, or add args.access.keys (whisperx-serve key NAME makes one) or "
            "args.access.trusted_networks, or, to let everybody in, set "
            "args.access.public_without_keys: true."
        )


def _check_deployment(
    deployment: dict[str, Any], user_configs: Mapping[str, type[BaseModel] | None], place: str
) -> None:
    name = str(deployment.get("name"))
    if name not in user_configs:
        raise CommandFailed(f"{place}: there is no deployment {name}; there are {', '.join(user_configs)}.")
    place = f"{place}.deployments[{name}]"
    if "ray_actor_options" in deployment:
        raise CommandFailed(
            f"{place}: ray_actor_options would replace what threads and gpu_share in args set; use those."
        )
    if isinstance(scaling := deployment.get("autoscaling_config"), dict):  # Serve accepts any mapping
        _policy(scaling, f"{place}.autoscaling_config")
        config = _validate(AutoscalingConfig, scaling, f"{place}.autoscaling_config")
        if not config.min_replicas and name in ALWAYS_NEEDED:
            raise CommandFailed(
                f"{place}: min_replicas must be at least 1; only the Diarizer and the Transcribers of "
                "`models` may go to zero, because only they are not always needed."
            )
    if (user_config := deployment.get("user_config")) is not None:
        if not (model := user_configs[name]):
            raise CommandFailed(f"{place}: {name} has no user_config.")
        _validate(model, user_config, f"{place}.user_config")


def _policy(scaling: dict[str, Any], place: str) -> Any:
    """The policy as Serve's controller will make it, which does not say what is wrong with it."""
    raw = scaling.get("policy") or {}
    for key in raw:
        if key not in AutoscalingPolicy.model_fields:
            raise CommandFailed(f"{place}.policy: unknown key {key}.")
    try:
        policy = AutoscalingPolicy(**raw)
        made = policy.get_policy()
        return made(**policy.policy_kwargs) if isinstance(made, type) else made
    except (TypeError, ValueError) as error:
        raise CommandFailed(f"{place}.policy: {str(error).partition(chr(10))[0]}.") from None


def _refuse_replicas_that_never_start(
    deployments: Iterable[dict[str, Any]], windows_in_flight: int, place: str
) -> None:
    """The Ingress holds windows of each model back, so that less audio may reach a Transcriber than its last
    replica is started for."""
    entries = {each["name"]: each for each in deployments}
    for name in (each for each in entries if each.startswith("Transcriber")):
        config = entries[name].get("autoscaling_config")
        if not config or not hasattr(policy := _policy(config, place), "audio_s_per_replica"):
            continue
        # More Ingresses start for more requests, which a few long files are not.
        ingresses = least_replicas(entries.get("Ingress", {}))
        per_replica_s, replicas = policy.audio_s_per_replica, config.get("max_replicas", 1)
        needed = math.ceil(replicas * per_replica_s / PADDED_S / ingresses)
        if windows_in_flight < needed:
            raise CommandFailed(
                f"{place}: windows_in_flight: {windows_in_flight} lets in too little audio for {replicas} "
                f"replicas of {name}, {per_replica_s:g} s each; set it to at least {needed}."
            )


def least_replicas(deployment: dict[str, Any]) -> int:
    """How many replicas a deployment of the file always has."""
    replicas = deployment.get("num_replicas")
    if isinstance(replicas, int):
        return replicas
    return int((deployment.get("autoscaling_config") or {}).get("min_replicas", 1))


def _validate(model: type[Model], data: Any, place: str) -> Model:
    try:
        return model.model_validate(data, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise CommandFailed(f"{place}: unknown key {key}.") from None
        raise CommandFailed(f"{place}: {key}: {first['msg'].removeprefix('Value error, ')}.") from None
    except (ImportError, AttributeError) as error:
        if isinstance(error, ImportError) or isinstance(error.obj, ModuleType):  # an autoscaling policy
            raise CommandFailed(f"{place}: {error}.") from None
        # One of Serve's validators fails on a value that is not a mapping.
        raise CommandFailed(f"{place}: a list or a value stands where a mapping must be.") from None


def settings_table() -> str:
    """Every setting with its default, as YAML, and its description, as a Markdown table."""
    rows = _rows(Settings, Settings().model_dump(mode="json"), "")
    return "\n".join(["| setting | default | |", "| --- | --- | --- |", *rows])


def _rows(model: type[BaseModel], defaults: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        default = defaults[name]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, default, f"{prefix}{name}.")
        else:
            shown = "" if default in (None, {}, []) else json.dumps(default).replace('"', "")
            yield f"| `{prefix}{name}` | {shown} | {field.description} |"
