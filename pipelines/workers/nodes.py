"""What a cluster has, and what is refused since it would wait for ever."""

import math
from dataclasses import dataclass
from typing import Literal

import ray

from atom.errors import ClusterError

GIB = 1 << 30
Kind = Literal["local", "existing", "job", "process"]
"""Of a cluster: started by this command, joined by address, of the Ray job, or of a program that started Ray itself."""


@dataclass(frozen=True)
class ClusterInfo:
    """What the cluster has.

    Attributes:
        kind: how this process came to it.
        cpus: CPUs of all nodes together.
        gpus: GPUs of all nodes together.
        num_nodes: live nodes.
        node_cpus: CPUs of each node.
        node_gpus: GPUs of each node, in the same order.
        node_memory: GiB that Ray may set aside on each node.
    """

    kind: Kind
    cpus: float
    gpus: float
    num_nodes: int
    node_cpus: tuple[float, ...]
    node_gpus: tuple[float, ...]
    node_memory: tuple[float, ...] = ()

    def describe(self) -> str:
        """One line for people."""
        kinds = {
            "local": "private local cluster",
            "existing": "existing cluster",
            "job": "cluster of this job",
            "process": "Ray of this process",
        }
        nodes = "1 node" if self.num_nodes == 1 else f"{self.num_nodes} nodes"
        return f"Ray {ray.__version__}, {kinds[self.kind]}: {nodes}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"

    def slots(self, *, cpus_per_actor: float, gpus_per_actor: float, memory_per_actor: float = 0.0) -> int:
        """How many actors of this size fit, node by node; an actor never spans two nodes."""
        total, asked = 0, (cpus_per_actor, gpus_per_actor, memory_per_actor)
        memory = self.node_memory or (math.inf,) * self.num_nodes
        for node in zip(self.node_cpus, self.node_gpus, memory, strict=True):
            fits = [has / ask for has, ask in zip(node, asked, strict=True) if ask > 0]
            # 1 / 0.1 and the like must not lose an actor to rounding.
            total += int(min(fits, default=0) + 1e-9)
        return total


def check_request(
    info: ClusterInfo,
    *,
    num_actors: int,
    cpus_per_actor: float,
    gpus_per_actor: float,
    memory_per_actor: float = 0.0,
) -> None:
    """Refuse what would wait for ever.

    Raises:
        ClusterError: one actor fits no node, or not all of them fit at once.
    """
    if gpus_per_actor > 1 and gpus_per_actor != int(gpus_per_actor):
        raise ClusterError(
            f"--gpus-per-actor {gpus_per_actor:g}: above 1, GPUs are given whole; "
            f"pass {int(gpus_per_actor)} or {int(gpus_per_actor) + 1}."
        )
    if gpus_per_actor > 0 and info.gpus == 0:
        raise ClusterError(
            f"--gpus-per-actor {gpus_per_actor:g} needs {gpus_per_actor:g} GPU, but this cluster has none. "
            "Start Ray with --num-gpus, or pass --gpus-per-actor 0 for CPU."
        )
    each = {"cpus_per_actor": cpus_per_actor, "gpus_per_actor": gpus_per_actor}
    slots = info.slots(**each, memory_per_actor=memory_per_actor)
    if slots < num_actors and info.slots(**each) >= num_actors:
        shown = ", ".join(f"{memory:.3g}" for memory in sorted(info.node_memory, reverse=True))
        raise ClusterError(
            f"--memory-per-actor {memory_per_actor:g}: {num_actors} workers of so many GiB do not fit, Ray may set"
            f" aside {shown} GiB on its nodes; pass a smaller --memory-per-actor or --num-actors."
        )
    if slots == 0:
        nodes = sorted(set(zip(info.node_cpus, info.node_gpus, strict=True)), reverse=True)
        shown = ", ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in nodes)
        raise ClusterError(
            f"One actor needs {cpus_per_actor:g} CPUs and {gpus_per_actor:g} GPUs on one node, but the "
            f"nodes have {shown}; pass a smaller --threads-per-actor or --gpus-per-actor."
        )
    if slots < num_actors:
        raise ClusterError(
            f"--num-actors {num_actors} with {cpus_per_actor:g} CPUs and {gpus_per_actor:g} GPUs each do not "
            f"fit the cluster's {info.cpus:g} CPUs and {info.gpus:g} GPUs; pass --num-actors {slots} or less."
        )
