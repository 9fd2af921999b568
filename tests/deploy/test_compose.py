"""The compose files: they fit the specification, and agree with the image and the config files."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_files import DEPLOY, PROJECT, application, interpolated, size_bytes, with_key
from typer.core import TyperGroup
from typer.main import get_command

from serve_app import __version__
from serve_app.__main__ import cli
from serve_app.cli import CommandFailed
from serve_app.cli.config_file import check, settings_of

CONFIGS = [DEPLOY / "config.yaml", DEPLOY / "compose" / "whisperx.yaml"]
WRITTEN = {"/tmp", "/var/tmp", "/var/lib/whisperx", "/models"}


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file with the defaults of its variables."""
    found = yaml.safe_load(interpolated((DEPLOY / name).read_text()))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_file_fits_the_specification(name: str) -> None:
    """Compose refuses a file with a field that it does not know."""
    specification = pytest.importorskip("compose_spec")
    specification.PyCompose.from_yaml(interpolated((DEPLOY / name).read_text()))


def test_everything_that_is_named_is_there() -> None:
    """Networks, volumes, secrets and configs of services are declared, and none in vain."""
    found = compose()
    services = found["services"].values()
    for kind in ("networks", "secrets", "configs", "volumes"):
        used = {
            name.partition(":")[0] if isinstance(name, str) else name["source"]
            for service in services
            for name in service.get(kind, ())
            if not (isinstance(name, dict) and name.get("type") == "bind")
        }
        assert used == set(found[kind])


def test_mounted_files_exist() -> None:
    """Compose would not start."""
    services = compose()["services"]
    mounts = [mount for name in ("prometheus", "grafana") for mount in services[name]["volumes"]]
    sources = {mount["source"] for mount in mounts if isinstance(mount, dict)}
    assert sources
    assert {source for source in sources if not (DEPLOY / source).exists()} == set()


def test_prometheus_finds_the_service() -> None:
    """Its configuration is that for one machine, but for the address, and the port is the one of metrics."""
    command = compose()["services"]["whisperx"]["command"]
    here, alone = (
        yaml.safe_load((DEPLOY / folder / "prometheus.yml").read_text())
        for folder in ("compose", "prometheus")
    )
    (job,) = here["scrape_configs"]
    assert job["static_configs"] == [
        {"targets": [f"whisperx:{command[command.index('--metrics-port') + 1]}"]}
    ]
    job["static_configs"] = alone["scrape_configs"][0]["static_configs"]
    assert here == alone


def test_passwords_are_not_committed() -> None:
    """The files of secrets are ignored by git."""
    for secret in compose()["secrets"].values():
        done = subprocess.run(
            ["git", "check-ignore", "-q", DEPLOY / secret["file"]], cwd=PROJECT, check=False
        )
        assert done.returncode == 0, secret


@pytest.mark.parametrize("service", ["whisperx", "migrate"])
def test_the_command_is_one_of_ours(service: str) -> None:
    """A flag that the program does not have would end the container at its start."""
    name, *arguments = compose()["services"][service]["command"]
    command: Any = get_command(cli)
    while isinstance(command := command.commands[name], TyperGroup):
        name, *arguments = arguments
    command.make_context(name, arguments, resilient_parsing=False).close()


def test_requests_end_before_the_container_is_killed() -> None:
    """`--grace-s` is what they get, `stop_grace_period` is when Docker kills."""
    service = compose()["services"]["whisperx"]
    grace_s = float(service["command"][service["command"].index("--grace-s") + 1])
    assert service["stop_grace_period"].endswith("m")
    assert float(service["stop_grace_period"][:-1]) * 60 >= grace_s + 30


def test_the_service_can_write_where_it_must_and_nowhere_else() -> None:
    """Its root file system is read-only, and its shared memory has room for Ray's objects."""
    service = compose()["services"]["whisperx"]
    assert service["read_only"]
    mounts = [
        text.split(":") for text in [*service["volumes"], *(f"tmpfs:{each}" for each in service["tmpfs"])]
    ]
    assert {parts[1] for parts in mounts} == WRITTEN
    assert size_bytes(service["shm_size"]) >= 0.3 * size_bytes(service["mem_limit"])


def test_the_service_waits_for_its_tables() -> None:
    """PostgreSQL is healthy, then the tables are made by the same version, then the service starts."""
    services = compose()["services"]
    assert services["whisperx"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert (
        services["migrate"]["image"] == services["whisperx"]["image"] == f"whisperx-serve:{__version__}-cpu"
    )
    assert services["migrate"]["configs"] == services["whisperx"]["configs"]
    store = application(yaml.safe_load(CONFIGS[1].read_text()))["args"]["jobs"]["store"]
    postgres = services["postgres"]["environment"]
    assert store.endswith(f"://{postgres['POSTGRES_USER']}@postgres:5432/{postgres['POSTGRES_DB']}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_config_file_needs_a_key_and_nothing_else(path: Path) -> None:
    """Without one the container says so and ends; with one it answers through the published port."""
    config = yaml.safe_load(path.read_text())
    with pytest.raises(CommandFailed, match="there are no API keys"):
        check(config, path)
    check(with_key(config), path)
    assert config["http_options"]["host"] == "0.0.0.0"
    published = compose()["services"]["whisperx"]["ports"][0]
    assert published == f"127.0.0.1:8000:{config['http_options']['port']}"


def test_both_config_files_run_the_same_models() -> None:
    """They differ in where jobs are kept."""
    one, other = (settings_of(with_key(yaml.safe_load(path.read_text())))[0] for path in CONFIGS)
    apart = {"access", "jobs"}
    assert one.model_dump(exclude=apart) == other.model_dump(exclude=apart)
    assert other.jobs.store
