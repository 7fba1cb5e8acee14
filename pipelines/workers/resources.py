"""How many workers of what size, and on which kind of device they compute."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Any, Self

from atom.errors import ClusterError
from atom.settings import DeviceKind
from pipelines.workers.cluster import cluster_info
from pipelines.workers.nodes import GIB, ClusterInfo, check_request
from pipelines.workers.settings import ClusterSettings

logger = logging.getLogger(__name__)

LOOK_S = 10.0
"""How often the cluster is asked how many workers it holds now."""
AHEAD = 8
"""Workers asked for beyond those that fit, where nodes are to come: an autoscaler starts nodes for what waits for
a place. Chosen: what is asked for grows with the cluster, and few are left waiting at its limit."""


@dataclass(frozen=True)
class ActorSize:
    """Resources of one worker, and how many there are.

    Attributes:
        num_actors: workers that the cluster holds, or that its autoscaler may make room for.
        cpus, gpus: of each.
        memory: GiB that Ray sets aside for each, 0 for none.
        most: workers that may be at work once nodes have joined the cluster; 0: no more than `num_actors`.
        ahead: workers to ask for beyond those that fit.
        asked: workers that the user allows, 0 for as many as fit.
        accelerator: kind of GPU that they compute on; empty on CPUs, or where Ray does not know it.
        left_out: nodes that have other devices, for people; empty where there are none.
    """

    num_actors: int
    cpus: float
    gpus: float
    memory: float = 0.0
    most: int = 0
    ahead: int = 0
    asked: int = 0
    accelerator: str = ""
    left_out: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """As an actor's or a task's options of Ray."""
        memory = {"memory": self.memory * GIB} if self.memory else {}
        accelerator = {"accelerator_type": self.accelerator} if self.accelerator else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **memory, **accelerator}

    @property
    def one_thread(self) -> Self:
        """The same with one thread of a CPU each, as trainings have, so that results do not depend on it."""
        return replace(self, cpus=0.0 if self.gpus else 1.0)

    def slots(self, cluster: ClusterInfo) -> int:
        """How many fit now; of what takes nothing one a node."""
        fitting = self._of_kind(cluster)
        return fitting.slots(**self._each) if any(self._each.values()) else fitting.num_nodes

    def slots_to_come(self, cluster: ClusterInfo) -> int:
        """How many the cluster's autoscaler may make room for."""
        return self._of_kind(cluster).slots_to_come(**self._each)

    def _of_kind(self, cluster: ClusterInfo) -> ClusterInfo:
        return cluster.of_kind(self.accelerator) if self.accelerator else cluster

    @property
    def _each(self) -> dict[str, float]:
        return {"cpus_per_actor": self.cpus, "gpus_per_actor": self.gpus, "memory_per_actor": self.memory}

    def at_most(self, num_actors: int) -> Self:
        """The same with no more workers than can be of use."""
        return replace(self, num_actors=min(self.num_actors, num_actors), most=min(self.most, num_actors))


class Width:
    """How many workers there may be now: as many as at the start, and more once nodes have joined the cluster.

    Those of a node that left are not counted off: who waits for a place waits for a node to come.
    """

    def __init__(self, size: ActorSize) -> None:
        self._size, self._holds, self._looked_s = size, size.num_actors, time.monotonic()

    def __call__(self) -> int:
        """Looks at the cluster every now and then."""
        size = self._size
        if size.most > self._holds and time.monotonic() - self._looked_s >= LOOK_S:
            self._looked_s = time.monotonic()
            holds = min(size.most, size.slots(cluster_info()))
            if holds > self._holds:
                logger.warning("the cluster has grown: %d workers, before %d", holds, self._holds)
                self._holds = holds
        return max(self._holds, min(size.most, self._holds + size.ahead))


def choose_size(
    cluster: ClusterInfo, asked: ClusterSettings, *, threads: int, num_units: int, memory: float = 0.0
) -> tuple[ActorSize, DeviceKind]:
    """The pool of workers and their device kind, "cuda" or "cpu".

    A worker on a GPU holds no CPU, since it computes next to nothing there; one on CPUs holds its threads. All
    workers compute on one kind of GPU: on another the same settings give other bits.

    Args:
        cluster: what there is.
        asked: what the user set; None is filled in.
        threads: CPU threads of a worker.
        num_units: units of work; more workers than these would idle.
        memory: GiB that are set aside for each worker.

    Raises:
        ClusterError: the cluster cannot hold it.
    """
    has_gpus = cluster.gpus > 0 or cluster.most.get("GPU", 0) > 0 or bool(asked.accelerator_type)
    gpus = asked.gpus_per_actor if asked.gpus_per_actor is not None else float(has_gpus)
    cpus = 0.0 if gpus else float(threads)
    accelerator = choose_accelerator(cluster, asked.accelerator_type, gpus)
    fitting = cluster.of_kind(accelerator) if accelerator else cluster
    each = {"cpus_per_actor": cpus, "gpus_per_actor": gpus, "memory_per_actor": memory}
    waits = bool(asked.wait_for_nodes_s)
    if (
        waits
        and not cluster.cpus
        and not cluster.gpus
        and not asked.accelerator_type
        and asked.gpus_per_actor != 0
    ):
        raise ClusterError(
            "--wait-for-nodes-s: no node tells yet what the work is to be done on; pass --accelerator-type, such as"
            " H100, or --gpus-per-actor 0 for CPUs, so that it does not depend on which node comes first."
        )
    check_request(fitting, num_actors=asked.num_actors or 1, **each, waits=waits)
    holds = max(1, fitting.slots(**each), fitting.slots_to_come(**each))
    size = ActorSize(
        min(asked.num_actors or holds, num_units),
        cpus,
        gpus,
        memory,
        most=min(asked.num_actors or num_units, num_units),
        ahead=AHEAD if waits else 0,
        asked=asked.num_actors or 0,
        accelerator=accelerator,
        left_out=_left_out(cluster, accelerator) if gpus else "",
    )
    return size, "cuda" if gpus else "cpu"


def choose_accelerator(cluster: ClusterInfo, asked: str, gpus: float) -> str:
    """The kind of GPU that all workers compute on: that asked for, else the one with most GPUs, of equals by name.

    Raises:
        ClusterError: no node has it.
    """
    known = cluster.accelerators()
    if asked and (not gpus or (known and asked not in known)):
        what = "the workers compute on CPUs" if not gpus else f"the cluster has {', '.join(sorted(known))}"
        raise ClusterError(f"--accelerator-type {asked}: {what}; pass one of these kinds, or leave it out.")
    if asked or not gpus or not known:
        return asked
    return max(sorted(known), key=lambda kind: known[kind])


def _left_out(cluster: ClusterInfo, accelerator: str) -> str:
    """Nodes that have other devices than the workers compute on."""
    kinds = cluster.node_accelerators or ("",) * cluster.num_nodes
    other: dict[str, int] = {}
    for kind, gpus in zip(kinds, cluster.node_gpus, strict=True):
        if not gpus:
            other["without a GPU"] = other.get("without a GPU", 0) + 1
        elif accelerator and kind != accelerator:
            name = f"with {kind or 'GPUs of a kind that Ray does not know'}"
            other[name] = other.get(name, 0) + 1
    return ", ".join(
        f"{number} {'node' if number == 1 else 'nodes'} {name}" for name, number in other.items()
    )
