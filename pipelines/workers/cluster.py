"""Ray: connect to a cluster or start a private one.

Three ways in, told apart by the environment: inside a Ray job (`ray job submit`), with RAY_ADDRESS set,
or on a laptop with neither. Importing this module imports Ray, so commands import it after `--help`.
"""

import functools
import gc
import json
import logging
import os
import secrets
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import ray
import ray.util.client
from ray._private import worker
from ray._private.state import state
from ray.exceptions import RayError
from ray.job_config import JobConfig

from atom.errors import ClusterError
from pipelines import ROOT
from pipelines.workers.nodes import ACCELERATOR, GIB, ClusterInfo, Kind

if TYPE_CHECKING:
    from torch import Tensor

    from atom.pixels import Images, Pixels

log = logging.getLogger(__name__)

_CONNECT_S = 10.0

_opened: Kind = "process"
"""Of the cluster that this process is connected to, as `connect` left it."""


@contextmanager
def connect(*, num_cpus: int | None = None) -> Iterator[ClusterInfo]:
    """Connected to Ray inside the block.

    In a process where Ray runs already, that connection is used and left open.

    Args:
        num_cpus: CPUs of a private local cluster, default all; other clusters have what they have.

    Raises:
        ClusterError: RAY_ADDRESS leads nowhere, or Ray does not start.
    """
    if ray.is_initialized():
        yield cluster_info()
        return
    # Else a worker that asked for no GPU sees all of them, and lands on the first one unasked.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS", "")
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        with _session("job", {}):
            yield cluster_info()
    elif address and address != "local":
        _check_address(address)
        # Else an address where something else listens is tried twenty times, forty seconds each.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
        with _session("existing", {"address": address, **quiet}):
            yield cluster_info()
    else:
        local = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False, **quiet}
        with private_token(), _session("local", local):
            yield cluster_info()


def is_joined() -> bool:
    """Whether `connect` leads to a cluster that was there before, and may have more nodes than this machine."""
    in_job, address = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"), os.environ.get("RAY_ADDRESS", "")
    return bool(in_job) or address not in ("", "local") or ray.is_initialized()


class OwnPath(JobConfig):
    """Lets workers import what is installed, or the checkout that runs, whatever the working directory holds.

    Ray itself puts the driver's working directory first on the workers' import path, where a folder `pipelines` or
    a file `torch.py` of the user's would be imported in place of the package.
    """

    def _serialize(self) -> str:
        # Here, since Ray adds its directories after the construction.
        installed = ROOT.name in ("site-packages", "dist-packages")
        self._py_driver_sys_path = [] if installed else [str(ROOT)]
        return super()._serialize()


@contextmanager
def _session(kind: Kind, arguments: Mapping[str, Any]) -> Iterator[None]:
    """`ray.init` with its many kinds of exception turned into one, and `ray.shutdown`."""
    global _opened
    # Ray's own client adds no directories.
    client = str(arguments.get("address")).startswith("ray://")
    path = {} if client else {"job_config": OwnPath()}
    try:
        ray.init(**arguments, **path)  # pyrefly: ignore
    except Exception as error:  # bare ones too, as where a node is too slow to start
        where = {"local": "a private cluster on this machine", "job": "the cluster of this job"}.get(
            kind, f"the cluster at RAY_ADDRESS={arguments.get('address')}"
        )
        advice = (
            "check free memory and the space in the temporary directory"
            if kind == "local"
            else "check that both run the same versions of Ray and Python, export RAY_AUTH_MODE=token if it "
            "asks for a token, or unset RAY_ADDRESS to compute on this machine"
        )
        raise ClusterError(
            f"Ray could not connect to {where}: {' '.join(str(error).split())}; {advice}."
        ) from error
    _opened = kind
    try:
        yield
    finally:
        _opened = "process"
        with _without_collections():
            ray.shutdown()


@contextmanager
def _without_collections() -> Iterator[None]:
    """A block in which no thread collects cycles.

    One that MLflow's thread collects while Ray ends may hold references and actors, which tell Ray's core of their end;
    where that is gone already, it exits the process with code 1.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def private_token() -> Iterator[None]:
    """Token for a private cluster, from the environment and gone afterwards.

    Left alone, Ray writes ~/.ray/auth_token, and from then on `ray start` asks every client for it.
    Switching authentication off instead would open the cluster to the network.
    """
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    if "RAY_AUTH_MODE" in os.environ:
        yield
        return
    before = {name: os.environ.get(name) for name in names}
    # The mode is left to Ray: it read the variable at its import, and turns tokens on for a new cluster.
    os.environ.setdefault("RAY_AUTH_TOKEN", _token())
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@functools.cache
def _token() -> str:
    """One token a process: Ray reads it once and keeps it for later clusters."""
    return secrets.token_hex(32)


def _check_address(address: str) -> None:
    """Refuse an address at which nobody listens; `ray.init` itself would wait for minutes.

    Raises:
        ClusterError: it is a dashboard's address, malformed, or unreachable.
    """
    if address == "auto":
        return
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS={address} is a dashboard's address, which serves `ray job submit`; use that "
            "command, set RAY_ADDRESS to the cluster's host:6379, or unset it to compute on this machine."
        )
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname or "", parts.port or 10001
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No Ray cluster answers at RAY_ADDRESS={address} ({error}); start one with `ray start --head`, "
            "correct the address (host:6379), or unset RAY_ADDRESS to compute on this machine."
        ) from error


def cluster_info() -> ClusterInfo:
    """What the connected cluster has right now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = tuple(float(node.get("CPU", 0)) for node in nodes)
    gpus = tuple(float(node.get("GPU", 0)) for node in nodes)
    memory = tuple(float(node.get("memory", 0)) / GIB for node in nodes)
    kinds = [[name for name in node if name.startswith(ACCELERATOR)] for node in nodes]
    accelerators = tuple(names[0].removeprefix(ACCELERATOR) if names else "" for names in kinds)
    return ClusterInfo(
        _opened, sum(cpus), sum(gpus), len(nodes), cpus, gpus, memory, accelerators, _autoscaled()
    )


def _autoscaled() -> dict[str, float]:
    """What an autoscaler may bring the cluster to, by Ray's names of resources; empty where there is none."""
    # As Ray Train asks; Ray has no public word for it.
    try:
        return dict(state.get_max_resources_from_cluster_config() or {})
    except (AttributeError, ValueError, RayError) as error:
        log.debug("Ray does not tell of an autoscaler: %s", error)
        return {}


def store_bytes() -> int | None:
    """What the object store of this process's node holds; None where the cluster does not tell."""
    own = ray.get_runtime_context().get_node_id()
    found = [node["Resources"] for node in ray.nodes() if node["NodeID"] == own]
    size = found[0].get("object_store_memory") if found else None
    return None if size is None else int(size)


def is_client() -> bool:
    """Whether this process is Ray's client (ray://): its objects are on another machine from the start."""
    return ray.util.client.ray.is_connected()


def spill_folder() -> Path | None:
    """Where this node's object store puts what does not fit it; None where nobody tells, or no one disk is meant.

    Ray has no public word for it: a folder that the cluster was started with, or that of the node's session, which lies
    in RAY_TMPDIR, --temp-dir or /tmp.
    """
    try:
        config = json.loads(state.get_system_config()["object_spilling_config"])
        chosen = config["params"]["directory_path"] if config["type"] == "filesystem" else []
        chosen = [chosen] if isinstance(chosen, str) else chosen
        own = worker._global_node.get_session_dir_path()  # pyrefly: ignore
    except (AttributeError, KeyError, TypeError, ValueError, RayError) as error:
        log.debug("Ray does not say where it spills: %s", error)
        return None
    if len(chosen) != 1:
        return None
    # The head's; another machine has its own session's, unless it has that one too.
    return Path(chosen[0] if Path(chosen[0]).is_dir() else own)


def as_tensor(array: np.ndarray) -> "Tensor":
    """Tensor that shares memory with an array of Ray's object store, without PyTorch's warning.

    The store maps arrays read-only, PyTorch knows no read-only tensors: never write to the result, but
    `.to(device)` or `.clone()` it first.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def as_images(stored: "Pixels | np.ndarray") -> "Images":
    """What `as_stored` made of images, as trainings take it."""
    return as_tensor(stored) if isinstance(stored, np.ndarray) else stored
