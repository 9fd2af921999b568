"""Strict reading of serve_config.yaml: Serve itself accepts misspelt keys without a word."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.http.auth import is_loopback
from serve_app.settings import Settings

IMPORT_PATH = "serve_app.app:build"
ALSO_OURS = "serve_app.app.build"  # Ray takes a dot as well

ON_CPU = "OnCpu"  # ends the names of the deployments of cpu_when_gpu_is_full

UserConfigs = Mapping[str, type[BaseModel] | None]  # deployment -> what its user_config may hold


class ConfigError(Exception):
    """Something in the file is wrong; the message names the key."""


def read(path: Path, schema: type[BaseModel], user_configs: UserConfigs) -> dict[str, Any]:
    """The file's content, checked key by key against Serve's schema, Settings and `user_configs`.

    Raises ConfigError naming the first wrong key with its place in the file.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no mapping; see serve_config.yaml in the project.")
    _refuse_unknown(schema, raw, str(path))
    _validate(schema, raw, str(path))
    for application in raw.get("applications") or ():
        place = f"{path}: applications[{application.get('name', '')}]"
        if application.get("import_path") == ALSO_OURS:
            application["import_path"] = IMPORT_PATH
        if application.get("import_path") == IMPORT_PATH:  # another application's args are its own business
            _validate(Settings, application.get("args") or {}, f"{place}.args")
            settings = Settings.model_validate(application.get("args") or {})
            _refuse_public(raw, settings, path)
            for deployment in application.get("deployments") or ():
                _check_deployment(deployment, user_configs, settings, place)
    return raw


def _refuse_public(raw: dict[str, Any], settings: Settings, path: Path) -> None:
    access = settings.access
    if access.keys or access.public_without_keys or raw.get("proxy_location") == "Disabled":
        return
    host = (raw.get("http_options") or {}).get("host", "0.0.0.0")  # noqa: S104  (Serve's default)
    if not is_loopback(host):
        raise ConfigError(
            f"{path}: http_options.host {host} lets other machines in, and there are no API keys. Set it to "
            "127.0.0.1, or add args.access.keys (python -m serve_app key NAME makes one), or, to let "
            "everybody in, set args.access.public_without_keys: true."
        )


def _check_deployment(deployment: Any, user_configs: UserConfigs, settings: Settings, place: str) -> None:
    name = deployment.get("name")
    if name not in user_configs:
        raise ConfigError(f"{place}: there is no deployment {name}; there are {', '.join(user_configs)}.")
    if name.endswith(ON_CPU) and not settings.cpu_when_gpu_is_full:
        raise ConfigError(f"{place}: {name} exists only with args.cpu_when_gpu_is_full: true.")
    place = f"{place}.deployments[{name}]"
    if name.endswith(ON_CPU) and not _starts_when_needed(deployment):
        raise ConfigError(
            f"{place}: replicas of it start when they are needed. To let more of them start then, give "
            "autoscaling_config: {min_replicas: 0, initial_replicas: 0, max_replicas: 2}."
        )
    if "ray_actor_options" in deployment:
        raise ConfigError(
            f"{place}: ray_actor_options would replace what threads and gpu_share in args set; use those."
        )
    if deployment.get("user_config") is not None:
        user_config = user_configs[name]
        if user_config is None:
            raise ConfigError(f"{place}: {name} has no user_config.")
        _validate(user_config, deployment["user_config"], f"{place}.user_config")


def _starts_when_needed(deployment: Any) -> bool:
    scaling = deployment.get("autoscaling_config", {"min_replicas": 0})  # without it, ours stays
    at_start = [scaling.get("min_replicas"), scaling.get("initial_replicas") or 0] if scaling else []
    return "num_replicas" not in deployment and at_start == [0, 0]


def _validate(model: type[BaseModel], data: Any, place: str) -> None:
    try:
        model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{place}: unknown key {key}.") from None
        raise ConfigError(f"{place}: {key}: {first['msg'].removeprefix('Value error, ')}.") from None


def _refuse_unknown(model: type[BaseModel], data: Any, place: str) -> None:
    """Walks the raw data beside the schema, into nested models and lists of them."""
    if not isinstance(data, dict):
        return
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, value in data.items():
        if key not in known:
            raise ConfigError(f"{place}: unknown key {key}; known are {', '.join(sorted(known))}.")
        for nested in _models_in(known[key].annotation):
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                label = item.get("name", index) if isinstance(item, dict) else index
                inside = f"{place}: {key}[{label}]" if isinstance(value, list) else f"{place}: {key}"
                if isinstance(value, list) and not isinstance(item, dict):
                    raise ConfigError(f"{inside} must be a mapping.")
                _refuse_unknown(nested, item, inside)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation can hold: through Optional, unions and lists, but only if it is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [model for argument in get_args(annotation) for model in _models_in(argument)]
    return found if len(found) == 1 else []
