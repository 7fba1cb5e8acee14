"""The libraries that decide bits, compared between the nodes of a cluster before anything is computed."""

import logging
from importlib.metadata import PackageNotFoundError, version

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atom.errors import ClusterError
from pipelines.workers.cluster import is_client
from pipelines.workers.faults import reason_of
from pipelines.workers.tasks import cancel

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "safetensors")
ANSWER_S = 60.0
"""A node that has not answered by then is not compared. Chosen: its first process imports nothing heavy."""


def versions() -> dict[str, str]:
    """Versions of the libraries that compute, here; "none" for those that are not installed."""
    return {name: _version(name) for name in PACKAGES}


def check_versions(limit_s: float = ANSWER_S) -> None:
    """Ask every other node that can compute for its versions, all at once; nothing on a cluster of one node.

    Raises:
        ClusterError: a node has others than this process: what is computed would depend on where.
    """
    # A client's own node is none of the cluster's.
    own, here = None if is_client() else ray.get_runtime_context().get_node_id(), versions()
    remote = ray.remote(num_cpus=0, max_retries=0)(versions)
    asked = {}
    for node in ray.nodes():
        # A head without processors computes nothing.
        computes = node["Resources"].get("CPU") or node["Resources"].get("GPU")
        if node["Alive"] and computes and node["NodeID"] != own:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[remote.options(scheduling_strategy=strategy).remote()] = node["NodeManagerAddress"]
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s) if asked else ([], [])
    for reference in ready:
        try:
            there = ray.get(reference, timeout=limit_s)
        except RayError as error:
            logger.warning(
                "node %s: its libraries are not known: %s", asked[reference], reason_of(error).reason
            )
        else:
            _compare(asked[reference], there, here)
    for reference in late:
        logger.warning("node %s: no answer for %g s, its libraries are not known", asked[reference], limit_s)
        cancel(reference)


def _compare(node: str, there: dict[str, str], here: dict[str, str]) -> None:
    other = [f"{name} {there[name]} (here {here[name]})" for name in here if there.get(name) != here[name]]
    if other:
        raise ClusterError(
            f"Node {node} of the cluster has {', '.join(other)}: results would depend on where they are computed;"
            " install the same versions on all nodes, or take the node out of the cluster."
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
