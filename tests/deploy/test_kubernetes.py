"""The manifests for KubeRay: they fit its API and that of Kubernetes, and agree with everything else."""

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deploy_files import (
    DEPLOY,
    KUBERNETES,
    PROJECT,
    SOURCES,
    all_documents,
    application,
    cluster,
    documents,
    groups,
    kustomized,
    of_kind,
    pod_templates,
    serve_config,
    size_bytes,
    with_key,
)
from ray._private import ray_constants
from typer.core import TyperGroup
from typer.main import get_command

from serve_app.__main__ import cli
from serve_app.cli import CommandFailed
from serve_app.cli.config_file import check, least_replicas, settings_of
from serve_app.cli.jobs import CannotMigrateNow

SCHEMA = yaml.safe_load(Path(__file__).with_name("rayservice.schema.yaml").read_text())
OWN = {"access", "jobs", "placement"}  # settings that only a cluster has

OBJECT_STORE_SHARE = ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION  # of a node's memory
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
ALLOCATABLE_CPUS, ALLOCATABLE_MEMORY = 3.9, "12.3Gi"  # of GKE's n1-standard-4, the smallest machine with a T4


@SOURCES
def test_the_rayservice_fits_kuberay(source: str) -> None:
    """KubeRay would drop a field that it does not know, and say nothing."""
    jsonschema.validate(of_kind("RayService", all_documents(source)), SCHEMA)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ((), "rayClusterDeletionDelaySecond"),
        (("rayClusterConfig",), "gcsFaultTolerance"),
        (("rayClusterConfig", "authOptions"), "modus"),
        (("rayClusterConfig", "headGroupSpec"), "label"),
        (("rayClusterConfig", "workerGroupSpecs", 0), "maxReplica"),
    ],
)
def test_a_misspelt_field_is_found(place: tuple[str | int, ...], name: str) -> None:
    """The schema is closed where KubeRay's own fields are."""
    service = copy.deepcopy(of_kind("RayService", all_documents("files")))
    spec: Any = service["spec"]
    for key in place:
        spec = spec[key]
    spec[name] = "1"
    with pytest.raises(jsonschema.ValidationError, match=name):
        jsonschema.validate(service, SCHEMA)


@SOURCES
def test_pods_and_other_objects_fit_kubernetes(source: str) -> None:
    """Every field of every object and pod is one of Kubernetes, and has its type."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    found = all_documents(source)
    objects = [each for each in found if each["kind"] != "RayService"]
    objects += [{"apiVersion": "v1", "kind": "Pod", **each} for each in pod_templates(found)]
    assert len(objects) > 10
    for each in objects:
        kubernetes.validate(each, kubernetes.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("gpu", "deploy/serve_config.autoscaling.yaml"),
        ("cpu", "serve_config.demo.yaml"),
        ("files", "deploy/serve_config.autoscaling.yaml"),
    ],
)
def test_the_application_is_that_of_the_project(source: str, name: str) -> None:
    """What was tried with `serve_app serve` is what runs on Kubernetes, but for the least replicas, and where
    they are.
    """
    here = application(serve_config(source))
    project = application(yaml.safe_load((PROJECT / name).read_text()))
    assert {key: value for key, value in here["args"].items() if key not in OWN} == project.pop("args")
    for each in (here, project):
        for deployment in each.get("deployments", ()):
            deployment.pop("max_replicas_per_node", None)
            deployment.get("autoscaling_config", {}).pop("min_replicas", None)
            if deployment["name"] == "Ingress":
                deployment.pop("num_replicas", deployment.pop("autoscaling_config", None))
    assert {key: value for key, value in here.items() if key != "args"} == project


@pytest.mark.parametrize("source", ["files", "gpu"])
def test_no_single_pod_or_changed_replica_stops_the_service(source: str) -> None:
    """All that a request needs is there twice, in two pods of each group; the shares fit on two GPUs.

    Of the stages that take long to start, and of Ingresses, each pod has one: Serve does not move them later.
    """
    config = application(serve_config(source))
    fewest = {each["name"]: least_replicas(each) for each in config["deployments"]}
    assert fewest.pop("Diarizer") == 0  # it starts at the first request with speakers
    assert set(fewest.values()) == {2}
    alone = {each["name"] for each in config["deployments"] if each.get("max_replicas_per_node") == 1}
    assert alone == {"Ingress", "SpeechDetector", "Transcriber", "Aligner", "Diarizer"}
    args = config["args"]
    assert sum(args[stage]["gpu_share"] for stage in ("asr", "speech", "alignment", "diarization")) <= 1.0
    groups = {group["groupName"]: group for group in cluster(source)["workerGroupSpecs"]}
    assert all(group["minReplicas"] == 2 for group in groups.values())
    most = {
        each["autoscaling_config"]["max_replicas"]
        for each in config["deployments"]
        if each["name"] in alone - {"Ingress"}
    }
    assert most == {groups["gpu"]["maxReplicas"]}
    # New Ingresses start before the old ones end.
    assert groups["cpu"]["maxReplicas"] >= 2 * fewest["Ingress"]


@SOURCES
def test_a_pod_that_is_taken_away_ends_its_requests(source: str) -> None:
    """Ray moves replicas after SIGTERM, Kubernetes kills later, and one pod of each group stays."""
    found = all_documents(source)
    drain_s = float(
        of_kind("ConfigMap", found, "whisperx-env")["data"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    )
    groups = cluster(source)["workerGroupSpecs"]
    for group in groups:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_s + 30
        (container,) = group["template"]["spec"]["containers"]
        assert all(
            each["name"] != "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" for each in container.get("env", ())
        )
    budgets = [each["spec"] for each in found if each["kind"] == "PodDisruptionBudget"]
    kept = {each["selector"]["matchLabels"]["ray.io/group"]: each["minAvailable"] for each in budgets}
    assert kept == {group["groupName"]: 1 for group in groups}
    assert all(kept[group["groupName"]] < group["minReplicas"] for group in groups)


@pytest.mark.parametrize("source", ["files", "gpu"])
def test_a_gpu_pod_fits_the_smallest_machine_with_a_t4(source: str) -> None:
    """One that asks for more would wait for ever, and nothing would say why."""
    (spec,) = (
        group["template"]["spec"]
        for group in cluster(source)["workerGroupSpecs"]
        if group["groupName"] == "gpu"
    )
    wanted = spec["containers"][0]["resources"]["requests"]
    assert size_bytes(wanted["memory"]) <= size_bytes(ALLOCATABLE_MEMORY)
    assert float(wanted["cpu"]) <= ALLOCATABLE_CPUS


@SOURCES
def test_a_restricted_namespace_takes_every_pod(source: str) -> None:
    """Pod Security "restricted": no root, no capabilities, the default seccomp profile."""
    templates = [*pod_templates(all_documents(source))]
    assert len(templates) > 3
    for template in templates:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            assert RESTRICTED.items() <= container["securityContext"].items()


@SOURCES
def test_only_the_operator_and_the_pods_reach_rays_own_ports(source: str) -> None:
    """Clients reach Serve's port, Prometheus the one of metrics; the stores are for the pods of Ray alone."""
    found = all_documents(source)
    rules = of_kind("NetworkPolicy", found)["spec"]["ingress"]
    anyone = {port["port"] for rule in rules if not rule.get("from") for port in rule["ports"]}
    assert anyone == {serve_config(source)["http_options"]["port"]}
    inside = {
        port["port"]
        for rule in rules
        if rule.get("from") == [{"namespaceSelector": {}}]
        for port in rule["ports"]
    }
    assert inside == {int(cluster(source)["headGroupSpec"]["rayStartParams"]["metrics-export-port"])}
    component = {"app.kubernetes.io/component": "kuberay-operator"}  # however it was installed
    (operator,) = (
        {port["port"] for port in rule["ports"]}
        for rule in rules
        if rule.get("from") == [{"namespaceSelector": {}, "podSelector": {"matchLabels": component}}]
    )
    assert operator == {8000, 8265, 52365}
    everything = [rule["from"] for rule in rules if "ports" not in rule]
    labels = cluster(source)["headGroupSpec"]["template"]["metadata"]["labels"]
    assert everything == [[{"podSelector": {"matchLabels": labels}}]]
    (stores,) = of_kind("NetworkPolicy", found, "whisperx-stores")["spec"]["ingress"]
    assert [stores["from"]] == everything
    guarded = of_kind("NetworkPolicy", found, "whisperx-stores")["spec"]["podSelector"]["matchExpressions"][0]
    assert set(guarded["values"]) == {
        each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for each in found
        if each["kind"] == "StatefulSet"
    }


def test_alerts_are_those_of_prometheus() -> None:
    """The Prometheus operator loads the same rules: `make docs` writes them."""
    (rule,) = documents(KUBERNETES / "prometheusrule.yaml")
    (alerts,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    assert rule["spec"] == alerts, "run `make docs`"


def test_grafanas_sidecar_finds_the_dashboard() -> None:
    """One ConfigMap with the label that it looks for, and the file as it is."""
    (config,) = kustomized(DEPLOY / "grafana")
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert config["data"] == {"whisperx.json": (DEPLOY / "grafana" / "dashboard.json").read_text()}


@SOURCES
def test_the_application_is_right_once_it_has_a_key(source: str) -> None:
    """Every key of the file is known; without an API key it would be open to nobody, and that is said."""
    config = serve_config(source)
    with pytest.raises(CommandFailed, match="there are no API keys"):
        check(config, Path("rayservice.yaml"))
    check(with_key(config), Path("rayservice.yaml"))


@SOURCES
def test_the_longest_request_is_not_cut_off(source: str) -> None:
    """Neither by the end of an old cluster nor by HAProxy when it is replaced."""
    (settings,) = settings_of(with_key(serve_config(source)))
    found = all_documents(source)
    environment = of_kind("ConfigMap", found, "whisperx-env")["data"]
    assert (
        of_kind("RayService", found)["spec"]["rayClusterDeletionDelaySeconds"] >= settings.request_timeout_s
    )
    assert int(environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) >= settings.request_timeout_s


@SOURCES
def test_replicas_find_nodes_and_the_head_has_none(source: str) -> None:
    """Each label that replicas ask for is that of one group, and GPUs are in the group for GPUs alone."""
    found = cluster(source)
    assert found["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "labels" not in found["headGroupSpec"]
    placement = settings_of(with_key(serve_config(source)))[0].placement.model_dump()
    groups = {group["groupName"]: group for group in found["workerGroupSpecs"]}
    assert {name: group["labels"] for name, group in groups.items()} == {
        k: v for k, v in placement.items() if v
    }
    assert set(groups) == ({"cpu"} if source == "cpu" else {"cpu", "gpu"})
    for name, group in groups.items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (name == "gpu")
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@SOURCES
def test_everything_that_is_written_has_a_volume(source: str) -> None:
    """The root file system is read-only, and nobody is root."""
    settings = settings_of(with_key(serve_config(source)))[0]
    written = {"/tmp", "/var/tmp", "/dev/shm", "/var/lib/whisperx", "/models"}
    for template in pod_templates(cluster(source)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= set(volumes)
            if container in spec["containers"]:
                assert str(Path(settings.jobs.key_file or "").parent) in mounts
                assert written <= set(mounts)
                memory = size_bytes(container["resources"]["limits"]["memory"])
                shared = size_bytes(volumes[mounts["/dev/shm"]]["emptyDir"]["sizeLimit"])
                assert shared >= OBJECT_STORE_SHARE * memory


@SOURCES
def test_audio_without_room_in_memory_goes_to_the_large_volume(source: str) -> None:
    """Ray would spill into its folder in /tmp, and the kubelet would evict a pod whose /tmp is full.

    Workers take the head's folder, and Ray makes it.
    """
    folder = Path(cluster(source)["headGroupSpec"]["rayStartParams"]["object-spilling-directory"])
    for template in pod_templates(cluster(source)):
        (container,) = template["spec"]["containers"]
        mounts = {Path(mount["mountPath"]): mount["name"] for mount in container["volumeMounts"]}
        assert mounts[next(each for each in folder.parents if each in mounts)] == "scratch"
    for group in cluster(source)["workerGroupSpecs"]:
        assert "object-spilling-directory" not in group["rayStartParams"]


@SOURCES
def test_pods_have_the_environment_of_the_documents(source: str) -> None:
    """docs/deploy.md has a table of variables that every node needs; the token's mode is KubeRay's to set."""
    found = all_documents(source)
    documented = re.findall(
        r"^\| `(\w+)=(\S+)` \|", (PROJECT / "docs" / "deploy.md").read_text(), re.MULTILINE
    )
    environment = of_kind("ConfigMap", found, "whisperx-env")["data"]
    assert cluster(source)["authOptions"]["mode"] == dict(documented).pop("RAY_AUTH_MODE")
    assert {
        name: value for name, value in documented if name != "RAY_AUTH_MODE"
    }.items() <= environment.items()
    for template in pod_templates(cluster(source)):
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]:
            assert {"configMapRef": {"name": "whisperx-env"}} in container["envFrom"]
            assert {"secretRef": {"name": "whisperx"}} in container["envFrom"]


@SOURCES
def test_metrics_are_where_the_monitor_looks(source: str) -> None:
    """One port, by number for Ray and by name for the PodMonitor, on the head and on every worker."""
    (monitor,) = documents(KUBERNETES / "podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for group in groups(source):
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
        assert ports[endpoint["port"]] == group["rayStartParams"]["metrics-export-port"]
        assert ports["serve"] == str(serve_config(source)["http_options"]["port"])
        assert (
            monitor["spec"]["selector"]["matchLabels"].items()
            <= group["template"]["metadata"]["labels"].items()
        )


@SOURCES
def test_the_tables_of_jobs_are_made_where_jobs_are_kept(source: str) -> None:
    """What the head prepares before it starts is the store that the application names.

    The address is in the environment of both.
    """
    prepared = yaml.safe_load(
        of_kind("ConfigMap", all_documents(source), "whisperx-jobs")["data"]["jobs.yaml"]
    )
    check(prepared, Path("jobs.yaml"))
    (settings,) = settings_of(prepared)
    assert settings.jobs.store == application(serve_config(source))["args"]["jobs"]["store"]
    address = of_kind("ConfigMap", all_documents(source), "whisperx-env")["data"]
    (container,) = of_kind("StatefulSet", all_documents(source), "whisperx-postgres")["spec"]["template"][
        "spec"
    ]["containers"]
    made = {each["name"]: each.get("value") for each in container["env"]}
    assert (
        address["PGHOST"]
        == of_kind("Service", all_documents(source), "whisperx-postgres")["metadata"]["name"]
    )
    assert (address["PGUSER"], address["PGDATABASE"]) == (made["POSTGRES_USER"], made["POSTGRES_DB"])


@SOURCES
def test_the_head_starts_where_tables_cannot_be_migrated_now(source: str, tmp_path: Path) -> None:
    """PostgreSQL is away, or a newer version has been here: neither needs to keep a head away. A failure that
    does not pass by itself does.
    """
    (init,) = cluster(source)["headGroupSpec"]["template"]["spec"]["initContainers"]
    program = tmp_path / "whisperx-serve"
    program.touch(mode=0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def head_starts(exit_code: int) -> tuple[bool, str]:
        program.write_text(f'#!/bin/sh\necho "$@"\nexit {exit_code}\n')
        command = [*init["command"], *init["args"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stdout

    starts, printed = head_starts(CannotMigrateNow.exit_code)
    assert starts
    first, second = printed.splitlines()
    assert "starts all the same" in second
    assert head_starts(0) == (True, f"{first}\n")
    assert head_starts(CommandFailed.exit_code) == (False, f"{first}\n")
    name, *arguments = first.split()
    command: Any = get_command(cli)
    while isinstance(command := command.commands[name], TyperGroup):
        name, *arguments = arguments
    assert command.make_context(name, arguments).params["wait_s"] > 60


def test_the_secrets_that_pods_read_are_made_as_documented() -> None:
    """deploy/README.md's commands make each secret with the keys that are asked for."""
    readme = (DEPLOY / "README.md").read_text()
    found = all_documents("files")
    wanted = re.findall(r"'secretKeyRef': \{'name': '(\S+)', 'key': '(\S+)'\}", str(found))
    assert ("whisperx-redis", "password") in wanted
    for name, key in wanted:
        command = re.search(rf"kubectl create secret generic {name} ((?:.*\\\n)*.*)", readme)
        assert command, name
        assert f"--from-literal={key}=" in command[1]


@pytest.mark.parametrize("has_image", [True, False])
def test_webhooks_are_signed_or_the_secret_is_not_made(has_image: bool, tmp_path: Path) -> None:
    """The commands of deploy/README.md need no package of ours on the operator's machine. Where the image
    cannot be run, an empty secret would leave webhooks unsigned without a word.
    """
    section = (DEPLOY / "README.md").read_text().partition("\n## Kubernetes\n")[2]
    commands = section.partition("```bash\n")[2].partition("kubectl apply")[0]
    exit_code = 0 if has_image else 125
    programs = {
        "docker": f'[ {exit_code} = 0 ] && [ "$4" = webhook-secret ] && echo whsec_made; exit {exit_code}',
        "openssl": "echo a password",
        "kubectl": f'echo "$@" >> {tmp_path}/said',
    }
    for name, does in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    subprocess.run(["/bin/sh", "-c", commands], env={"PATH": str(tmp_path)}, check=True, capture_output=True)
    made = (tmp_path / "said").read_text().splitlines()
    assert any("generic whisperx-redis " in line for line in made)
    signed = [line for line in made if "generic whisperx " in line]
    assert ["WEBHOOK_SECRETS=whsec_made" in line for line in signed] == ([True] if has_image else [])


def test_ray_is_the_version_that_is_installed() -> None:
    """KubeRay is told the version of Ray in the image."""
    pinned = re.search(r"^ray==(\S+)", (PROJECT / "requirements.lock").read_text(), re.MULTILINE)
    assert pinned
    assert cluster("files")["rayVersion"] == pinned[1]
