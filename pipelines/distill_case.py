"""What a distillation was decided to be, and what follows from that: its name, its identity, its load, its parts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atom.methods.settings import DistillSettings
from atom.settings import DeviceKind, EvaluateSettings
from pipelines.console.commands import DistillCommand

if TYPE_CHECKING:
    import numpy as np

    from atom.data import RealData
    from atom.distilled import DistilledSet
    from atom.methods.experts import Expert
    from atom.methods.method import Unit
    from atom.preprocess import Preprocess
    from pipelines.output.expert_files import ExpertFiles
    from pipelines.output.store import Store
    from pipelines.preflight import Load
    from pipelines.workers.remote import Problem
    from pipelines.workers.resources import ActorSize


@dataclass(frozen=True)
class Case:
    """One run of the command with everything decided.

    Attributes:
        command: as given.
        settings, evaluation: resolved.
        real: the images.
        store: the output, which belongs to `digest`.
        size: the workers, on `device_kind`.
        units: of the method.
        first: the set whose images are started from, if any.
        shared: where experts are kept; None: in the output.
    """

    command: DistillCommand
    settings: DistillSettings
    evaluation: EvaluateSettings
    real: "RealData"
    store: "Store"
    size: "ActorSize"
    device_kind: DeviceKind
    digest: str
    units: "Sequence[Unit]"
    first: "DistilledSet | None" = None
    shared: "Store | None" = None


def run_name(settings: DistillSettings, source: str) -> str:
    """Name of a run, such as atom-cifar10-ipc10-s0."""
    from atom.methods.registry import short_name

    factor = f"-f{settings.factor}" if settings.factor > 1 else ""
    size = f"ipc{settings.ipc}" if settings.images_in_all is None else f"images{settings.images_in_all}"
    return f"{short_name(settings.method)}-{source}-{size}{factor}-s{settings.seed}"


def identity_of(
    settings: DistillSettings, real: "RealData", device_kind: DeviceKind, taught_by: "Sequence[Expert]" = ()
) -> dict[str, Any]:
    """All that decides the bits of a set; `taught_by` label its images."""
    from atom.methods.lookup import find_method, images_version, method_identity
    from atom.methods.teachers import told_of
    from pipelines.output.expert_files import experts_identity
    from pipelines.output.ownership import CHECKPOINTS_VERSION
    from pipelines.real_images import network_identity

    return {
        **settings.model_dump(mode="json"),
        "method": method_identity(settings.method),
        "network": network_identity(settings.network, real),
        "dataset": real.name,
        "fingerprint": real.train.fingerprint,
        "device": device_kind,
        "images_version": images_version(settings.method),
        **CHECKPOINTS_VERSION,
        **experts_identity([*find_method(settings.method).preparations(settings), *taught_by]),
        **({"teacher": told_of(taught_by)} if taught_by else {}),
    }


def load_of(
    command: DistillCommand,
    settings: DistillSettings,
    real: "RealData",
    units: "Sequence[Unit]",
    size: "ActorSize",
    device_kind: DeviceKind,
    *,
    taught: bool,
) -> "Load":
    """What has to be held; `taught`: whether teachers are trained."""
    from atom.methods.lookup import find_method
    from pipelines.preflight import Load, images_in_work
    from pipelines.real_images import judging_images

    train, judged, joint = real.train, is_judged(command), len(units) == 1
    counts_K = train.per_class_counts()
    prepares = bool(find_method(settings.method).preparations(settings))
    of_units = [] if joint else [int(counts_K[list(unit)].sum()) for unit in units]
    return Load(
        num_train=len(train),
        num_test=len(judging_images(real, command.judge_on)) if judged else 0,
        image_bytes=math.prod(train.images.shape[1:]),
        num_classes=train.num_classes,
        largest_class=int(counts_K.max()),
        in_work=images_in_work(of_units, size.num_actors),
        ipc=max(settings.per_class(train.num_classes)),
        workers=size.num_actors,
        on_cuda=device_kind == "cuda",
        whitened=settings.zca == "on",
        whole="distilling" if joint or prepares else "judging" if taught else "",
    )


def problem_of(case: Case) -> "Problem":
    """What workers are told."""
    from pipelines.workers.remote import Problem

    channels, height, width = case.real.train.images.shape[1:]
    return Problem(case.settings, channels, height, width, case.real.train.num_classes, case.device_kind)


def given_images(case: Case, preprocess: "Preprocess") -> "Mapping[int, np.ndarray] | None":
    """Stored images that each class starts from, where --init names a set."""
    from atom.initial import initial_from_set

    if case.first is None:
        return None
    images = initial_from_set(
        case.first,
        preprocess,
        class_names=case.real.train.class_names,
        ipc=case.settings.ipc,
        factor=case.settings.factor,
    )
    return dict(enumerate(images.numpy()))


def expert_files(case: Case, preprocess: "Preprocess") -> "ExpertFiles":
    """Where networks trained on these images are kept."""
    from pipelines.output.expert_files import EXPERTS_FOLDER, ExpertFiles

    place = case.shared or case.store.inside(EXPERTS_FOLDER)
    return ExpertFiles(place, case.real, preprocess=preprocess.digest, device=case.device_kind)


def is_judged(command: DistillCommand) -> bool:
    """Whether anything is to be trained on the set."""
    return bool(command.judges.eval_seeds and command.judges.eval_networks)
