"""How many workers of what size, and on which kind of device they compute."""

from dataclasses import dataclass

from atom.settings import DeviceKind
from pipelines.workers.cluster import ClusterInfo, check_request
from pipelines.workers.settings import ClusterSettings


@dataclass(frozen=True)
class ActorSize:
    """Resources of one worker, and how many there are."""

    num_actors: int
    cpus: float
    gpus: float


def choose_size(
    cluster: ClusterInfo, asked: ClusterSettings, *, threads: int, num_units: int
) -> tuple[ActorSize, DeviceKind]:
    """The pool of workers and their device kind, "cuda" or "cpu".

    A worker on a GPU holds no CPU, since it computes next to nothing there; one on CPUs holds its threads.

    Args:
        cluster: what there is.
        asked: what the user set; None is filled in.
        threads: CPU threads of a worker.
        num_units: units of work; more workers than these would idle.

    Raises:
        ClusterError: the cluster cannot hold it.
    """
    gpus = asked.gpus_per_actor if asked.gpus_per_actor is not None else float(cluster.gpus > 0)
    cpus = 0.0 if gpus else float(threads)
    check_request(cluster, num_actors=asked.num_actors or 1, cpus_per_actor=cpus, gpus_per_actor=gpus)
    slots = cluster.slots(cpus_per_actor=cpus, gpus_per_actor=gpus)
    return ActorSize(min(asked.num_actors or slots, num_units), cpus, gpus), "cuda" if gpus else "cpu"
