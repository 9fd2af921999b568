"""Several Ray nodes on one machine: a raylet each, in a network namespace each where that is allowed."""

import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default
from rich.console import Console

from benchmarks.chaos.faults import BETWEEN_S, CLIENTS, counts
from benchmarks.chaos.load import Clip, Load
from benchmarks.chaos.running_graph import Graph, config, deployed, wait_for
from serve_app.cli.launcher import free_port, url_of
from serve_app.cli.local_ray import ENVIRONMENT
from serve_app.deployments.replica import BOOKED_CPUS

BRIDGE = f"wx-{os.getpid()}"  # another run, or what a killed one left, has another name
NETWORK = f"10.231.{os.getpid() % 256}"  # .1 is the head, which stays in this process's namespace
NOT_ALLOWED = (
    "not permitted",
    "Permission denied",
    "not supported",
    "Unknown device type",
)  # as `ip` says it
STORE_BYTES = 200 << 20
LOST_REPLICA = ("/replica_died", "/replica_unavailable")
HELD_MIB = 1.0  # half a minute of audio
JOIN_S = 120.0

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Node:
    """One that runs, or has been killed."""

    address: str
    process: psutil.Process
    id: str = ""  # Ray's

    def kill(self) -> None:
        """SIGKILL for all of its processes, as if its power were cut."""
        victims = [self.process, *self.process.children(recursive=True)]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        psutil.wait_procs(victims, timeout=30)


@dataclass
class Nodes:
    """A Ray cluster of nodes that differ in the label `pool`; this process is its driver."""

    folder: Path  # of Ray, and of each node's log
    in_namespaces: bool
    head: Node
    gcs: str
    workers: dict[str, Node] = field(default_factory=dict)  # by pool

    def add(self, pool: str, **resources: float) -> None:
        """Starts a node, also in place of one that has been killed."""
        address = f"{NETWORK}.{2 + len({*self.workers, pool}) - 1}" if self.in_namespaces else "127.0.0.1"
        if pool in self.workers:
            address = self.workers[pool].address
        known = {node["NodeID"] for node in ray.nodes()}
        process = _start(self.folder, address, pool, [f"--address={self.gcs}"], resources)
        self.workers[pool] = Node(address, process)

        def joined() -> list[str]:
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            return sorted(alive - known)

        wait_for(lambda: bool(joined()), f"node {pool} has joined", JOIN_S)
        self.workers[pool].id = joined()[0]


def store_mib(node: Node) -> float:
    """What is in a node's object store now."""
    free: Any = ray._private.state.available_resources_per_node()
    return (STORE_BYTES - float(free[node.id].get("object_store_memory", STORE_BYTES))) / (1 << 20)


@contextmanager
def several_nodes(http: Mapping[str, Any], pools: int) -> Iterator[Nodes]:
    """A head and room for this many other nodes; Serve listens as `http` says."""
    with ExitStack() as held:
        in_namespaces = held.enter_context(_network(pools))
        address = f"{NETWORK}.1" if in_namespaces else "127.0.0.1"
        temporary = tempfile.TemporaryDirectory(prefix="wx-nodes-", ignore_cleanup_errors=True)
        folder = Path(held.enter_context(temporary))
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        enable_token_auth_by_default()  # for this process, which has read Ray's settings, and for nodes
        port = free_port()
        own = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        nodes = Nodes(
            folder,
            in_namespaces,
            Node(address, _start(folder, address, "head", own, {"num-cpus": 4})),
            f"{address}:{port}",
        )
        try:
            wait_for(lambda: _listens(address, port), "the head listens", JOIN_S)
            ray.init(
                address=nodes.gcs,
                namespace="serve",
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=address,
            )
            nodes.head.id = ray.get_runtime_context().get_node_id()
            serve.start(http_options=dict(http), logging_config={"log_level": "WARNING"})
            yield nodes
        finally:
            with suppress(Exception):  # the cluster may be in any state
                serve.shutdown()
            ray.shutdown()
            for node in (*nodes.workers.values(), nodes.head):
                with suppress(psutil.NoSuchProcess):
                    node.kill()


def _start(
    folder: Path, address: str, pool: str, options: list[str], resources: Mapping[str, float]
) -> psutil.Process:
    namespace = [] if address.endswith(".1") else ["ip", "netns", "exec", _namespace(address)]
    command = [
        *namespace,
        *[sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"],
        *[f"--node-ip-address={address}", f"--labels=pool={pool}", f"--object-store-memory={STORE_BYTES}"],
        *["--min-worker-port=0", "--max-worker-port=0"],
        *[f"--{name}={value:g}" for name, value in resources.items()],
        *options,
    ]
    with (folder / f"{pool}.log").open("ab") as log:
        return psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _namespace(address: str) -> str:
    return f"{BRIDGE}-{address.rpartition('.')[2]}"


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


@contextmanager
def _network(pools: int) -> Iterator[bool]:
    """A bridge and a namespace for each node but the head. Gives False where the kernel allows none."""
    with ExitStack() as made:
        try:
            _ip(f"link add {BRIDGE} type bridge")
            made.callback(_ip, f"link del {BRIDGE}")
            _ip(f"addr add {NETWORK}.1/24 dev {BRIDGE}")
            _ip(f"link set {BRIDGE} up")
            for number in range(2, 2 + pools):
                name = _namespace(f"{NETWORK}.{number}")
                _ip(f"netns add {name}")
                made.callback(_ip, f"netns del {name}")
                _ip(f"link add {name} type veth peer name eth0 netns {name}")
                _ip(f"link set {name} master {BRIDGE} up")
                _ip(f"-n {name} addr add {NETWORK}.{number}/24 dev eth0")
                _ip(f"-n {name} link set eth0 up")
                _ip(f"-n {name} link set lo up")
        except FileNotFoundError:  # there is no `ip`
            yield False
            return
        except subprocess.CalledProcessError as error:
            made.close()
            if not any(reason in error.stderr for reason in NOT_ALLOWED):
                raise RuntimeError(f"{' '.join(error.cmd)}: {error.stderr}") from None
            yield False
            return
        yield True


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


POOLS: dict[str, dict[str, float]] = {
    "loaders": {"num-cpus": 1},
    "models": {"num-cpus": 1, "num-gpus": 1},
}
SHARES = {"speech": 0.1, "asr": 0.5, "alignment": 0.2, "diarization": 0.2}  # of the GPU that Ray believes in


def _only_on(pool: str) -> dict[str, Any]:
    """`deployments:` of one that books no GPU, to have it on this pool's nodes."""
    return {
        "placement_group_bundles": [{"CPU": BOOKED_CPUS}],
        "placement_group_bundle_label_selector": [{"pool": pool}],
    }


@contextmanager
def scene_of_nodes(clips: list[Clip], asr: float, others: float) -> Iterator[tuple[Graph, Load, Nodes]]:
    """The graph on three nodes: the Ingress on the head, the loader on one, all models on another."""
    raw = config(
        settings={
            "placement": {"gpu": {"pool": "models"}},
            **{stage: {"gpu_share": share} for stage, share in SHARES.items()},
        },
        args={"load_s": 0.1, "asr": asr, "others": others, "device": "cuda"},
        deployments={"Ingress": _only_on("head"), "AudioLoader": _only_on("loaders")},
    )
    with several_nodes(raw["http_options"], len(POOLS)) as nodes:
        for pool, resources in POOLS.items():
            nodes.add(pool, **resources)
        raw["applications"][0]["args"]["settings"]["intake"] = {"allowed_hosts": [nodes.head.address]}
        load = Load(url_of(raw), clips, host=nodes.head.address)
        try:
            with deployed(raw, load.url) as graph:
                yield graph, load, nodes
        finally:
            load.close()


def most_in_stores(load: Load, nodes: Nodes, clip: Clip) -> dict[str, float]:
    """The most MiB in each node's object store while this clip is transcribed."""
    found = dict.fromkeys(("head", *nodes.workers), 0.0)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(load.send, clip)
        while not sent.done():
            for name, node in (("head", nodes.head), *nodes.workers.items()):
                found[name] = max(found[name], store_mib(node))
            time.sleep(0.05)
    assert sent.result().ok, sent.result()
    return found


def running_windows(graph: Graph) -> float:
    """How many windows the Transcriber works on now."""
    found: dict[str, float] = graph.handle("Transcriber").counters.remote().result(timeout_s=60)
    return found["running"]


def lose_nodes(graph: Graph, load: Load, nodes: Nodes, clients: int = CLIENTS) -> dict[str, Any]:
    """SIGKILL of all processes of each node in turn, and another node in its place: no request may notice."""
    load.learn()
    recovered_s: dict[str, float] = {}
    killed_s: list[float] = []
    with load.steady(clients) as outcomes:
        for name, resources in POOLS.items():
            time.sleep(BETWEEN_S[1])
            if name == "loaders":
                wait_for(lambda: store_mib(nodes.workers["loaders"]) > HELD_MIB, "audio is held", JOIN_S)
            else:
                wait_for(lambda: running_windows(graph) > 0, "a batch runs", JOIN_S)
            begun_s, before = time.monotonic(), graph.replicas()
            killed_s.append(begun_s)
            nodes.workers[name].kill()
            nodes.add(name, **resources)
            graph.settle()
            recovered_s[name] = time.monotonic() - begun_s
            lost = sum(not process.is_running() for found in before.values() for process in found)
            say.print(f"  {name}: {lost} replicas lost, whole again after {recovered_s[name]:.1f} s")
        time.sleep(BETWEEN_S[1])

    def open_at(at_s: float) -> int:
        return sum(outcome.begun_s < at_s < outcome.ended_s for outcome in outcomes)

    return {
        **counts(outcomes),
        "in_network_namespaces": float(nodes.in_namespaces),
        "recover_s_of": recovered_s,
        "open_at_each_kill": min(map(open_at, killed_s)),
        "retries": (retries := graph.retries()),
        "retries_of_lost_replicas": sum(
            times for what, times in retries.items() if what.endswith(LOST_REPLICA)
        ),
        "slowest_request_s": max(outcome.wall_s for outcome in outcomes),
    }
