"""What a cluster has, and what is refused since it would wait for ever."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import ray

from atom.errors import ClusterError

GIB = 1 << 30
ACCELERATOR = "accelerator_type:"
"""Begins the name of the resource that a node with GPUs of a kind has for Ray."""
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
        node_accelerators: the kind of GPU of each node, as Ray calls it (H100); empty where it has or tells none.
        most: by Ray's names of resources what an autoscaler may bring the cluster to; empty where there is none.
    """

    kind: Kind
    cpus: float
    gpus: float
    num_nodes: int
    node_cpus: tuple[float, ...]
    node_gpus: tuple[float, ...]
    node_memory: tuple[float, ...] = ()
    node_accelerators: tuple[str, ...] = ()
    most: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for people."""
        kinds = {
            "local": "private local cluster",
            "existing": "existing cluster",
            "job": "cluster of this job",
            "process": "Ray of this process",
        }
        nodes = "1 node" if self.num_nodes == 1 else f"{self.num_nodes} nodes"
        more = ""
        if self.most:
            cpus, gpus = (self.most.get(name, 0) for name in ("CPU", "GPU"))
            more = f"; its autoscaler may start up to {cpus:g} CPUs, {gpus:g} GPUs"
        return f"Ray {ray.__version__}, {kinds[self.kind]}: {nodes}, {self.cpus:g} CPUs, {self.gpus:g} GPUs{more}"

    def slots(self, *, cpus_per_actor: float, gpus_per_actor: float, memory_per_actor: float = 0.0) -> int:
        """How many actors of this size fit, node by node; an actor never spans two nodes."""
        total, asked = 0, (cpus_per_actor, gpus_per_actor, memory_per_actor)
        memory = self.node_memory or (math.inf,) * self.num_nodes
        for node in zip(self.node_cpus, self.node_gpus, memory, strict=True):
            fits = [has / ask for has, ask in zip(node, asked, strict=True) if ask > 0]
            # 1 / 0.1 and the like must not lose an actor to rounding.
            total += int(min(fits, default=0) + 1e-9)
        return total

    def slots_to_come(
        self, *, cpus_per_actor: float, gpus_per_actor: float, memory_per_actor: float = 0.0
    ) -> int:
        """How many actors of this size an autoscaler may make room for, all its nodes together; 0 without one."""
        asked = {"CPU": cpus_per_actor, "GPU": gpus_per_actor, "memory": memory_per_actor * GIB}
        if not memory_per_actor or "memory" not in self.most:
            del asked["memory"]
        fits = [self.most.get(name, 0) / each for name, each in asked.items() if each > 0]
        return int(min(fits, default=0) + 1e-9)

    def accelerators(self) -> Counter[str]:
        """GPUs by kind, of the nodes that tell it."""
        counts: Counter[str] = Counter()
        kinds = self.node_accelerators or ("",) * len(self.node_gpus)
        for kind, gpus in zip(kinds, self.node_gpus, strict=True):
            if kind and gpus:
                counts[kind] += int(gpus)
        for name, number in self.most.items():
            if name.startswith(ACCELERATOR) and number:
                counts[name.removeprefix(ACCELERATOR)] += 0
        return counts

    def of_kind(self, accelerator: str) -> "ClusterInfo":
        """The same cluster without the nodes that have other GPUs, or none."""
        kept = [place for place, kind in enumerate(self.node_accelerators) if kind == accelerator]

        def at(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[place] for place in kept) if values else ()

        return replace(
            self,
            num_nodes=len(kept),
            cpus=sum(at(self.node_cpus)),
            gpus=sum(at(self.node_gpus)),
            node_cpus=at(self.node_cpus),
            node_gpus=at(self.node_gpus),
            node_memory=at(self.node_memory),
            node_accelerators=(accelerator,) * len(kept),
        )


def check_request(
    info: ClusterInfo,
    *,
    num_actors: int,
    cpus_per_actor: float,
    gpus_per_actor: float,
    memory_per_actor: float = 0.0,
    waits: bool = False,
) -> None:
    """Refuse what would wait for ever.

    Args:
        info: what there is, and what an autoscaler may add.
        num_actors: workers at once.
        cpus_per_actor, gpus_per_actor, memory_per_actor: of each; GiB.
        waits: whether nodes are waited for that are not there yet, and of which nothing is known.

    Raises:
        ClusterError: one actor fits no node, or not all of them fit at once.
    """
    if gpus_per_actor > 1 and gpus_per_actor != int(gpus_per_actor):
        raise ClusterError(
            f"--gpus-per-actor {gpus_per_actor:g}: above 1, GPUs are given whole; "
            f"pass {int(gpus_per_actor)} or {int(gpus_per_actor) + 1}."
        )
    each = {"cpus_per_actor": cpus_per_actor, "gpus_per_actor": gpus_per_actor}
    to_come = info.slots_to_come(**each, memory_per_actor=memory_per_actor)
    if to_come >= num_actors or (waits and not info.most):
        return
    if gpus_per_actor > 0 and info.gpus == 0 and not to_come:
        raise ClusterError(
            f"--gpus-per-actor {gpus_per_actor:g} needs {gpus_per_actor:g} GPU, but this cluster has none. "
            "Start Ray with --num-gpus, or pass --gpus-per-actor 0 for CPU."
        )
    slots = max(to_come, info.slots(**each, memory_per_actor=memory_per_actor))
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
            f"nodes have {shown or 'nothing yet'}; pass a smaller --threads-per-actor or --gpus-per-actor, or"
            " --wait-for-nodes-s where nodes are to come."
        )
    if slots < num_actors:
        cpus, gpus = (
            max(has, info.most.get(name, 0)) for has, name in ((info.cpus, "CPU"), (info.gpus, "GPU"))
        )
        raise ClusterError(
            f"--num-actors {num_actors} with {cpus_per_actor:g} CPUs and {gpus_per_actor:g} GPUs each do not "
            f"fit the cluster's {cpus:g} CPUs and {gpus:g} GPUs; pass --num-actors {slots} or less, or"
            " --wait-for-nodes-s where nodes are to come."
        )
