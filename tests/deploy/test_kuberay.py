"""What KubeRay 1.7 asks of a RayService beyond its schema, which nothing says when the manifest is applied.

The reasons are in ray-operator/controllers/ray of KubeRay's repository; each test names the file and the
function. Where KubeRay refuses, it is an event of the RayService; where it only waits, a line in the
operator's log.
"""

import re
from typing import Any

from deploy_files import DEPLOY, SOURCES, all_documents, cluster, groups, of_kind, serve_config

# The ports of a head that names none: common/service.go, getDefaultPorts.
DEFAULT_PORTS = {"client": 10001, "dashboard": 8265, "gcs-server": 6379, "metrics": 8080, "serve": 8000}


def ray_container(group: dict[str, Any]) -> dict[str, Any]:
    """The container that KubeRay starts Ray in: the first one (utils/constant.go, RayContainerIndex)."""
    found = group["template"]["spec"]["containers"][0]
    assert isinstance(found, dict)
    return found


@SOURCES
def test_the_head_names_every_port_that_its_services_need(source: str) -> None:
    """A head that names any port gets services with these alone, and KubeRay's own are missing.

    common/service.go: getServicePorts. rayservice_controller.go: reconcileServe sends the application to the
    port `dashboard` of the head's service, and waits for ever where there is none (FetchHeadServiceURL). The
    service for clients has the port `serve` of the head (BuildServeService).
    """
    ports = {port["name"]: port["containerPort"] for port in ray_container(groups(source)[0])["ports"]}
    assert ports == DEFAULT_PORTS
    assert ports["serve"] == serve_config(source)["http_options"]["port"]


@SOURCES
def test_ray_listens_where_kuberay_asks(source: str) -> None:
    """KubeRay reads ports from the container and not from Ray's options, which must not differ from them.

    common/service.go: getPortsFromCluster. common/pod.go: setMissingRayStartParams. Probes of ours and
    KubeRay's agent ask 52365, the dashboard must be open to the operator, and Ray is to stay in the
    foreground.
    """
    for group in groups(source):
        options = group["rayStartParams"]
        moved = {"port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "address"}
        assert not moved & set(options)
        assert "block" not in options
        assert options.get("dashboard-host", "0.0.0.0") == "0.0.0.0"
        assert options["metrics-export-port"] == str(DEFAULT_PORTS["metrics"])


@SOURCES
def test_options_of_ray_start_are_strings_without_spaces(source: str) -> None:
    """They become one unquoted line for a shell, and `true` a flag: common/pod.go, convertParamMap."""
    for group in groups(source):
        for name, value in group["rayStartParams"].items():
            assert isinstance(value, str), name
            assert re.fullmatch(r"[\w./:-]+", value), name
            assert value not in ("true", "false"), name


@SOURCES
def test_kuberay_writes_the_command(source: str) -> None:
    """A command or argument of ours would run before `ray start`: common/pod.go, BuildPod."""
    for group in groups(source):
        assert not {"command", "args"} & set(ray_container(group))
    annotations = of_kind("RayService", all_documents(source))["metadata"].get("annotations", {})
    assert "ray.io/overwrite-container-cmd" not in annotations


@SOURCES
def test_each_pod_has_a_container_of_ray_alone(source: str) -> None:
    """KubeRay adds a container `autoscaler` to the head and an init container `wait-gcs-ready` to workers.

    common/pod.go: DefaultHeadPodTemplate, DefaultWorkerPodTemplate. Two of one name make a pod that
    Kubernetes refuses. What Ray may use is read from the limits, or the requests (generateRayStartCommand):
    CPUs are rounded up, a resource whose name ends in `gpu` is the number of GPUs.
    """
    head, *workers = groups(source)
    for group in (head, *workers):
        spec = group["template"]["spec"]
        names = [each["name"] for each in (*spec.get("initContainers", ()), *spec["containers"])]
        assert len(spec["containers"]) == 1
        assert not {"autoscaler", "wait-gcs-ready"} & set(names)
        limits = ray_container(group)["resources"]["limits"]
        assert float(limits["cpu"]).is_integer()
        assert limits["memory"]
        if group in workers:
            assert not {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"])
    assert head["rayStartParams"]["num-cpus"] == "0"


@SOURCES
def test_resources_and_labels_of_a_group_are_given_once(source: str) -> None:
    """utils/validation.go: validateRayGroupResources, validateRayGroupLabels. Names of labels are
    Kubernetes'.
    """
    for group in groups(source):
        assert "resources" not in group
        assert "labels" not in group["rayStartParams"]
        for name, value in group.get("labels", {}).items():
            assert re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", name)
            assert re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", value)


@SOURCES
def test_groups_have_names_and_numbers_of_their_own(source: str) -> None:
    """utils/util.go: GetWorkerGroupDesiredReplicas keeps replicas between the two numbers without a word.

    utils/validation.go: ValidateRayClusterSpec refuses suspended groups beside the autoscaler.
    """
    _, *workers = groups(source)
    names = [group["groupName"] for group in workers]
    assert len(set(names)) == len(names)
    assert "headgroup" not in names  # the head's, utils/constant.go
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert not group.get("suspend")


@SOURCES
def test_the_second_autoscaler_may_be_asked_for(source: str) -> None:
    """utils/validation.go: ValidateRayClusterSpec. The version is in autoscalerOptions alone, and no pod is
    restarted in place.
    """
    found = cluster(source)
    assert found["enableInTreeAutoscaling"]
    assert found["autoscalerOptions"]["version"] == "v2"
    names = {each["name"] for each in ray_container(found["headGroupSpec"])["env"]}
    assert "RAY_enable_autoscaler_v2" not in names
    for group in groups(source):
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"


@SOURCES
def test_the_autoscaler_finds_the_heads_logs(source: str) -> None:
    """KubeRay mounts a volume of its own as /tmp/ray into both containers of the head: common/pod.go,
    BuildPod.

    So Ray's folder of sessions must be there, and no mount of ours may be.
    """
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"\bRAY_TMPDIR=/tmp\b(?!/)", dockerfile)
    for group in groups(source):
        assert "temp-dir" not in group["rayStartParams"]
        assert "/tmp/ray" not in {mount["mountPath"] for mount in ray_container(group)["volumeMounts"]}
    assert "RAY_TMPDIR" not in of_kind("ConfigMap", all_documents(source), "whisperx-env")["data"]


@SOURCES
def test_redis_is_named_once(source: str) -> None:
    """utils/validation.go: ValidateRayClusterSpec. Beside gcsFaultToleranceOptions neither an annotation nor
    an option of Ray nor a variable of the head may say where Redis is, or with which password.
    """
    found = cluster(source)
    assert found["gcsFaultToleranceOptions"]["redisAddress"]
    annotations = of_kind("RayService", all_documents(source))["metadata"].get("annotations", {})
    assert not {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & set(annotations)
    assert not {"redis-password", "redis-username"} & set(found["headGroupSpec"]["rayStartParams"])
    variables = {each["name"] for each in ray_container(found["headGroupSpec"])["env"]}
    variables |= set(of_kind("ConfigMap", all_documents(source), "whisperx-env")["data"])
    assert not {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"} & variables


@SOURCES
def test_what_kuberay_sets_is_left_to_it(source: str) -> None:
    """Variables that it adds to each container of Ray: common/pod.go, setContainerEnvVars.

    Some win where they are given, and Ray would then connect to somewhere else.
    """
    own = {"RAY_ADDRESS", "RAY_PORT", "RAY_IP", "FQ_RAY_IP", "RAY_CLUSTER_NAME", "RAY_CLOUD_INSTANCE_ID"}
    own |= {"RAY_NODE_TYPE_NAME", "KUBERAY_GEN_RAY_START_CMD", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    shared = set(of_kind("ConfigMap", all_documents(source), "whisperx-env")["data"])
    for group in groups(source):
        assert not own & (shared | {each["name"] for each in ray_container(group).get("env", ())})


@SOURCES
def test_a_token_needs_a_ray_that_has_tokens(source: str) -> None:
    """utils/validation.go: ValidateRayClusterSpec wants rayVersion, of at least 2.52.0."""
    assert cluster(source)["authOptions"]["mode"] == "token"
    assert tuple(map(int, cluster(source)["rayVersion"].split("."))) >= (2, 52, 0)


@SOURCES
def test_the_name_is_short_enough_for_all_that_is_made_of_it(source: str) -> None:
    """utils/validation.go: ValidateRayServiceMetadata. KubeRay makes names of services and clusters of it."""
    name = of_kind("RayService", all_documents(source))["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 47


@SOURCES
def test_the_upgrade_strategy_is_one_that_we_can_use(source: str) -> None:
    """utils/validation.go: ValidateRayServiceSpec. `NewClusterWithIncrementalUpgrade` needs more than we
    have.
    """
    spec = of_kind("RayService", all_documents(source))["spec"]
    assert spec["upgradeStrategy"]["type"] in ("NewCluster", "None")
    assert spec["rayClusterDeletionDelaySeconds"] >= 0
    assert "headService" not in spec["rayClusterConfig"]["headGroupSpec"]


@SOURCES
def test_a_worker_takes_requests_once_its_proxy_answers(source: str) -> None:
    """KubeRay adds both probes where there is none, and changes none of ours: common/pod.go,
    initLivenessAndReadinessProbe. The service for clients has all workers, so a worker may be ready only when
    its proxy answers. A head must be ready as soon as Ray runs: before that no application is sent
    (rayservice_controller.go, reconcileServe).
    """
    head, *workers = groups(source)
    for group in workers:
        container = ray_container(group)
        assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
        assert {"name": "serve", "containerPort": DEFAULT_PORTS["serve"]} in container["ports"]
    for group in (head, *workers):
        container = ray_container(group)
        probes = [container["livenessProbe"], *([container["readinessProbe"]] if group is head else [])]
        for probe in probes:
            command = " ".join(probe["exec"]["command"])
            assert "127.0.0.1:52365/api/local_raylet_healthz" in command
            assert ("127.0.0.1:8265/api/gcs_healthz" in command) == (group is head)


@SOURCES
def test_labels_by_which_kuberay_finds_pods_are_its_own(source: str) -> None:
    """common/pod.go: labelPod lets our values win, without a word, for all of KubeRay's labels but three.

    The service whisperx-head-svc selects `app.kubernetes.io/name: kuberay` whatever the pods have
    (common/service.go, BuildHeadServiceForRayService), and would have no endpoints.
    """
    kuberays = {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}
    for group in groups(source):
        labels = group["template"]["metadata"]["labels"]
        assert labels
        assert not kuberays & set(labels)
        assert not any(name.startswith("ray.io/") for name in labels)


def test_ray_is_found_without_a_login_shell() -> None:
    """KubeRay runs `bash -c "ulimit -n 65536; ray start ..."` since 1.4 (utils/util.go, GetContainerCommand).

    A login shell, which the operator's ENABLE_LOGIN_SHELL asks for, would lose the image's PATH. Its own
    probes use wget.
    """
    image = (DEPLOY / "Dockerfile").read_text().rpartition("FROM ${BASE}")[2]
    assert "PATH=/opt/venv/bin:$PATH" in image
    installed = re.search(r"apt-get install -y --no-install-recommends ([^\\&]*)", image)
    assert installed
    assert {"bash", "wget"} <= set(installed[1].split())
