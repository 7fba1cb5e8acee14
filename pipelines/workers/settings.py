"""What a user may set about the workers, and how patient a command is with them."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from atom.settings import Settings

MOST_PAUSE_S = 300.0
"""No pause before a new try is longer. Chosen: other units have come to an end by then, or a rerun is due."""


@dataclass(frozen=True)
class Limits:
    """Bounds on patience.

    Attributes:
        max_retries: tries after a machine fault, per unit, without a chunk's progress between them.
        chunk_timeout_s: a chunk that takes longer counts as stalled; its actor is killed.
        timeout_retries: tries after a time limit, per unit, but no more than `max_retries`.
        pending_timeout_s: how long no actor at all may be up before the dispatch gives up.
        pause_s: seconds before the first new try where memory ran out, four times as long before each further one,
            and at most `MOST_PAUSE_S`.
    """

    max_retries: int = 3
    chunk_timeout_s: float = 1800.0
    timeout_retries: int = 1
    pending_timeout_s: float = 300.0
    pause_s: float = 5.0

    def pause(self, failures: int) -> float:
        """Seconds until memory that ran out is asked for again, after so many such failures before."""
        return min(MOST_PAUSE_S, self.pause_s * 4 ** min(failures, 99))


class ClusterSettings(Settings):
    """How many workers, of what size."""

    num_actors: Annotated[int, Field(ge=1)] | None = None
    """Workers; default as many as the cluster's GPUs, or its CPUs, hold. Changes the speed, never the result."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each worker, fractions allowed; default 1 where the cluster has GPUs, else 0."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """New attempts of a unit of work after a machine fault (worker or node lost, out of memory)."""
    timeout_s: Annotated[float, Field(gt=0)] = 7200.0
    """Seconds a worker may take for one chunk of iterations or one training before it is replaced."""

    wait_for_nodes_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds to wait for nodes on which a worker fits, where the cluster has none yet; more workers are asked for
    than fit then, so that an autoscaler starts nodes. Default 0."""
    accelerator_type: str = ""
    """Kind of GPU to compute on, as Ray calls it (H100), where a cluster has several or none yet; default the one of
    which there are most. Other nodes are left out."""

    def limits(self) -> Limits:
        """As the loops over workers take them."""
        pending_s = max(Limits().pending_timeout_s, self.wait_for_nodes_s or 0.0)
        return Limits(self.max_retries, chunk_timeout_s=self.timeout_s, pending_timeout_s=pending_s)
