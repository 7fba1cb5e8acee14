"""What runs on a worker for a learner: the learning of one step, a thin shell over `apps.learner`."""

from typing import TYPE_CHECKING

from atom.settings import DeviceKind

if TYPE_CHECKING:
    from apps.learner.step import StepJob, StepOutcome


def learn_version(item: str, job: "StepJob", device_kind: DeviceKind) -> "StepOutcome":
    """What comes of the step; `item` is its name."""
    from apps.learner.step import run_step
    from atom.device import resolve_device, use_threads

    with use_threads(1):
        return run_step(job, resolve_device(device_kind))
