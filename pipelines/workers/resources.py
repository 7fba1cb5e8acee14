"""How many workers of what size, and on which kind of device they compute."""

from dataclasses import dataclass

from atom.settings import DeviceKind
from pipelines.workers.nodes import GIB, ClusterInfo, check_request
from pipelines.workers.settings import ClusterSettings


@dataclass(frozen=True)
class ActorSize:
    """Resources of one worker, and how many there are; memory in GiB, 0 where none is set aside."""

    num_actors: int
    cpus: float
    gpus: float
    memory: float = 0.0

    @property
    def options(self) -> dict[str, float]:
        """As an actor's or a task's options of Ray."""
        memory = {"memory": self.memory * GIB} if self.memory else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **memory}


def choose_size(
    cluster: ClusterInfo, asked: ClusterSettings, *, threads: int, num_units: int, memory: float = 0.0
) -> tuple[ActorSize, DeviceKind]:
    """The pool of workers and their device kind, "cuda" or "cpu".

    A worker on a GPU holds no CPU, since it computes next to nothing there; one on CPUs holds its threads.

    Args:
        cluster: what there is.
        asked: what the user set; None is filled in.
        threads: CPU threads of a worker.
        num_units: units of work; more workers than these would idle.
        memory: GiB that are set aside for each worker.

    Raises:
        ClusterError: the cluster cannot hold it.
    """
    gpus = asked.gpus_per_actor if asked.gpus_per_actor is not None else float(cluster.gpus > 0)
    cpus = 0.0 if gpus else float(threads)
    each = {"cpus_per_actor": cpus, "gpus_per_actor": gpus, "memory_per_actor": memory}
    check_request(cluster, num_actors=asked.num_actors or 1, **each)
    size = ActorSize(min(asked.num_actors or cluster.slots(**each), num_units), cpus, gpus, memory)
    return size, "cuda" if gpus else "cpu"
