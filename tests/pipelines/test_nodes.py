"""Nodes that join, are taken back, are started by an autoscaler or have another device: processes of this machine."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from command_runs import ROOT, RUN_S, checkpointed, environment, wait_for

pytestmark = [pytest.mark.nodes, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
STORE = "--object-store-memory=80000000"
WORK = (
    *("--dataset", "digits", "--train-per-class", 40, "--network", "convnet-w16-d2"),
    *("--batch-real", 16, "--checkpoint-every", 200, "--eval-seeds", 0, "--zca", "off"),
)
"""Ten units; on a busy machine 300 iterations a second, on all workers together."""


class Nodes:
    """Nodes of one cluster, each a foreground `ray start` in a session of its own, ended by its process group."""

    def __init__(self, folder: Path) -> None:
        # A busy machine starts a node in more than the half minute that Ray gives it.
        patient = {"RAY_raylet_start_wait_time_s": "120"}
        self.env = environment(RAY_AUTH_MODE="disabled", RAY_TMPDIR=str(folder), **patient)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.started: list[subprocess.Popen[bytes]] = []

    def head(self, *flags: str, **env: str) -> None:
        self._start(
            "--head", f"--port={self.port}", "--include-dashboard=false", "--num-cpus=0", *flags, **env
        )
        wait_for(lambda: len(alive(self)) == 1, limit_s=120)

    def add(self, *flags: str) -> subprocess.Popen[bytes]:
        """A node with a CPU, one after the other: several that start at once hold each other up."""
        before = len(alive(self, cpus=1))
        node = self._start(f"--address={self.address}", "--num-cpus=1", *flags)
        wait_for(lambda: len(alive(self, cpus=1)) > before, limit_s=120)
        return node

    def _start(self, *flags: str, **env: str) -> subprocess.Popen[bytes]:
        command = [*RAY, "start", "--block", STORE, "--node-ip-address=127.0.0.1", *flags]
        node = subprocess.Popen(
            command,
            env=self.env | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started.append(node)
        return node

    def kill(self, node: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, number)
        node.wait(timeout=30)

    def close(self) -> None:
        for node in reversed(self.started):
            self.kill(node)

    def asked(self, script: str) -> str:
        """What a program prints that has joined the cluster."""
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env=self.env | {"RAY_ADDRESS": self.address},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()[-1]

    def distil(self, output: Path, *flags: object, iterations: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "pipelines" / "distill.py"), *WORK, "--iterations", iterations]
        return subprocess.Popen(
            [str(word) for word in (*command, "--output", output, *flags)],
            env=self.env | {"RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    # A socket's path has room for a hundred letters, and most of them are Ray's.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        found = Nodes(Path(folder))
        yield found
        found.close()


def works(node: subprocess.Popen[bytes]) -> bool:
    """Whether a worker of the pool runs there."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(node.pid).children(recursive=True)
        return any("ray::PoolWorker" in " ".join(child.cmdline()) for child in children)
    return False


def ended(process: subprocess.Popen[str]) -> str:
    """What a command said that ended well."""
    try:
        told, errors = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors
    return told + errors


def test_a_node_that_joins_late_works_and_one_that_is_taken_back_costs_no_retry(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.head()
    first = nodes.add()
    (to_go,) = alive(nodes, cpus=1)
    process = nodes.distil(tmp_path / "out", "--max-retries", 0, iterations=3000)
    wait_for(lambda: checkpointed(tmp_path / "out") > 0 or process.poll() is not None, limit_s=RUN_S)
    second = nodes.add()
    # Both at work, the first is drained as a provider's notice does it, and gone four seconds later.
    wait_for(lambda: works(second) or process.poll() is not None, limit_s=RUN_S)
    assert process.poll() is None, "ended too early to show anything"
    drain(nodes, to_go, seconds=4)
    # Its workers go on until the provider takes the node, some time after the deadline.
    time.sleep(8)
    nodes.kill(first)
    told = ended(process)
    assert "the cluster has grown: 2 workers, before 1" in told
    assert "its node was taken back by its provider; it goes on elsewhere" in told
    assert "retry" not in told


def test_a_cluster_that_scales_from_zero_is_waited_for(nodes: Nodes, tmp_path: Path) -> None:
    scaling = {
        "cluster_name": "grows",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": nodes.address,
            "head_node_id": "f" * 56,
            # They look for nodes by addresses, which all nodes of this machine share.
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "worker_liveness_check": False,
        },
        "auth": {},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "setup_commands": [],
        "initialization_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    config = tmp_path / "scaling.yaml"
    config.write_text(yaml.safe_dump(scaling))
    nodes.head(
        f"--autoscaling-config={config}",
        RAY_FAKE_CLUSTER="1",
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_OVERRIDE_NODE_ID_FOR_TESTING="f" * 56,
    )
    told = ended(
        nodes.distil(tmp_path / "out", "--wait-for-nodes-s", 240, "--gpus-per-actor", 0, iterations=3000)
    )
    # Ray lists the head twice at times.
    assert re.search(r"cluster: [12] nodes?, 0 CPUs", told)
    assert "the cluster has grown: 2 workers, before 1" in told


ON_ONE_KIND = """
import json, ray
from pipelines.workers.cluster import connect
from pipelines.workers.resources import choose_size
from pipelines.workers.settings import ClusterSettings

class Worker:
    def where(self):
        return ray.get_runtime_context().get_node_id()

with connect() as cluster:
    size, _ = choose_size(cluster, ClusterSettings(), threads=1, num_units=9)
    remote = ray.remote(Worker).options(**size.options)
    actors = [remote.remote() for _ in range(size.num_actors)]
    kinds = {n["NodeID"]: [r for r in n["Resources"] if r.startswith("accelerator_type")] for n in ray.nodes()}
    on = [kinds[where] for where in ray.get([a.where.remote() for a in actors], timeout=60)]
    print(json.dumps({"on": on, "left_out": size.left_out}))
"""


def test_a_node_of_another_kind_of_device_is_left_out(nodes: Nodes) -> None:
    nodes.head()
    for kind in ("H100", "H100", "A100"):
        nodes.add("--num-gpus=1", f"--resources={json.dumps({f'accelerator_type:{kind}': 1})}")
    told = json.loads(nodes.asked(ON_ONE_KIND))
    assert told["on"] == [["accelerator_type:H100"]] * 2
    assert "1 node with A100" in told["left_out"]


DECODED = """
import io, json
import numpy as np
from PIL import Image
from atom.data.decode import Decoding, Entry, decode_all
from pipelines.workers.decoding import ClusterDecoder

def encoded(number):
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()

entries = [Entry(str(number), number % 7, encoded(number % 50)) for number in range(9000)]
with ClusterDecoder() as decoder:
    spread = decode_all(entries, Decoding(image_size=16, elsewhere=decoder), num_entries=len(entries))
    told = {"workers": decoder._width(), "told": sorted(decoder._told)}
here = decode_all(entries, Decoding(image_size=16), num_entries=len(entries))
same = np.array_equal(spread.images, here.images) and np.array_equal(spread.labels, here.labels)
print(json.dumps({"same": same, **told}))
"""


def test_images_are_decoded_on_all_nodes(nodes: Nodes) -> None:
    nodes.head()
    for _ in range(2):
        nodes.add()
    assert json.loads(nodes.asked(DECODED)) == {"same": True, "workers": 2, "told": []}


ALIVE = """
import json, ray
ray.init(address="{address}", log_to_driver=False, logging_level="ERROR")
print(json.dumps([n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= {cpus}]))
"""


def alive(nodes: Nodes, *, cpus: int = 0) -> list[str]:
    """Nodes with so many CPUs or more; the head has none. Nothing where the cluster does not answer yet."""
    try:
        socket.create_connection(("127.0.0.1", nodes.port), timeout=1).close()
        return json.loads(nodes.asked(ALIVE.format(address=nodes.address, cpus=cpus)))
    except (OSError, AssertionError, subprocess.SubprocessError):
        return []


def drain(nodes: Nodes, node: str, *, seconds: int) -> None:
    """What a provider's notice does: no new work there, and the end at a deadline."""
    command = [*RAY, "drain-node", f"--address={nodes.address}", f"--node-id={node}"]
    reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back"]
    subprocess.run(
        [*command, *reason, f"--deadline-remaining-seconds={seconds}"],
        env=nodes.env,
        check=True,
        timeout=60,
        capture_output=True,
    )
