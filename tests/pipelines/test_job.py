"""A cluster that was there before: the command as a Ray job, and on two nodes of which one dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_runs import ROOT, environment, wait_for

from atom.distilled import DistilledSet
from pipelines.tracking.backend import open_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOB_S = 300
AGENT_S = 120
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """Address of the job server of a cluster of our own, stopped by its process group alone."""
    # Ray's sockets have long names below this folder, and a socket's path ends at 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port, dashboard, client, agent, metrics = free_ports(5)
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
            *(f"--temp-dir={folder}", f"--object-store-memory={200 * 2**20}"),
        ],
        env=environment(RAY_AUTH_MODE="disabled"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(lambda: answers(address) or head.poll() is not None, limit_s=180)
        assert head.poll() is None
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def submit(address: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`ray job submit --working-dir . -- python pipelines/distill.py` with these arguments.

    The server answers before the agent that starts jobs has reported to it, so a refusal for that is repeated.
    """
    deadline_s = time.monotonic() + AGENT_S
    while True:
        job = submit_once(address, *arguments)
        if "No available agent to submit job" not in job.stderr or time.monotonic() > deadline_s:
            return job
        time.sleep(2)


def submit_once(address: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(RAY, "job", "submit", "--address", address, "--working-dir", "."),
            *("--", "python", "pipelines/distill.py", *map(str, arguments)),
        ],
        cwd=ROOT,
        env=environment(RAY_AUTH_MODE="disabled"),
        capture_output=True,
        text=True,
        timeout=JOB_S,
        check=False,
    )


def test_job_ends_with_a_set_and_a_finished_run_beside_it(job_server: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(job_server, "--dataset", "digits", "--smoke", "--output", output)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "cluster of this job: 1 node, 2 CPUs" in job.stdout
    assert DistilledSet.load(output / "set").images_NCHW.shape == (10, 1, 8, 8)
    known = json.loads((output / "mlflow_run.json").read_text())
    assert known["tracking_uri"] == f"sqlite:///{output / 'mlflow.db'}"
    recorded = open_client(known["tracking_uri"]).get_run(known["run_id"])
    assert recorded.info.status == "FINISHED"
    assert "eval/convnet/acc_mean" in recorded.data.metrics
    assert recorded.data.tags["ray.submission_id"].startswith("raysubmit_")


def test_relative_output_of_a_job_is_refused(job_server: str) -> None:
    job = submit(job_server, "--dataset", "digits", "--smoke", "--output", "here")
    assert job.returncode == 1
    assert "ConfigError: --output here: a Ray job runs in a directory that is deleted after it" in job.stdout
    assert "exit code 2" in job.stdout + job.stderr


def test_node_killed_in_the_middle_does_not_change_a_bit(tmp_path: Path) -> None:
    small = ("--network", "convnet-w8-d2", "--batch-real", "8", "--iterations", "300", "--eval-seeds", "0")
    process = subprocess.run(
        [sys.executable, "benchmarks/two_nodes.py", "--folder", str(tmp_path), "--", *small],
        cwd=ROOT,
        # A node is given up after five checks without an answer, by default three seconds apart.
        env=environment(RAY_health_check_period_ms="500"),
        capture_output=True,
        text=True,
        timeout=JOB_S,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "its worker died" in process.stderr
    assert "retry 1 of 3" in process.stderr
    assert process.stdout.splitlines()[-1].startswith("identical: ")
