"""The commands' settings: parts from beside the code that reads them, and what is a command's own."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from apps.continual.settings import ContinualSettings, LearnerSettings
from apps.nas.settings import NasSettings
from atom.methods.settings import DistillSettings
from atom.methods.teacher_settings import TeacherSettings
from atom.settings import EvaluateSettings, Settings, Switch
from pipelines.console.options import CommandSettings


class DataSettings(Settings):
    """Where the real images come from."""

    dataset: str = "digits"
    """Source: digits, cifar10, cifar100, mnist, fashionmnist, svhn, tinyimagenet, imagenet:PATH, imagenette:PATH, ...,
    folder:PATH, sessions:PATH, parquet:PATH, webdataset:PATH or npz:PATH; also URIs."""
    data_dir: Path = Path("data")
    """Where official files lie or are downloaded to, and where decoded images are cached."""
    image_size: Annotated[int, Field(ge=4)] | None = None
    """Crop all images to their centre square and resize it to this many pixels a side; default as they are."""
    download: bool = True
    """Whether a missing official source may be downloaded."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and list them, instead of stopping at the first."""
    image_column: str | None = None
    """Column of the images in parquet files; default found by metadata, name or type."""
    label_column: str | None = None
    """Column of the labels in parquet files, such as coarse_label, or field of webdataset:'s JSON; default found by
    metadata, name or type."""
    test_part: str | None = None
    """Part to test on, of folder:, parquet: and webdataset:, or val of npz:; default the first of test and validation
    that has labels."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes of npz: and webdataset:, in the order of the labels; default their numbers, or classes.txt
    beside the shards. Other sources have their own."""
    validation_frac: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training images put aside to choose by, stratified and the same for every command; sets are
    not distilled from them."""
    train_per_class: Annotated[int, Field(ge=1)] | None = None
    """Use only this many training images of each class, drawn at random; default all."""
    symbols: Switch = "auto"
    """Whether the images show digits, letters or the like, which are not mirrored; auto: by the names of the
    classes."""


class JudgeSettings(Settings):
    """Which networks judge a set."""

    eval_networks: tuple[str, ...] | None = None
    """Networks trained on the set, by the names of docs/evaluate.md; default the one it was distilled with, and the
    same with BatchNorm, or what the protocol says."""
    eval_seeds: Annotated[int, Field(ge=0)] = 5
    """Trainings of each network, each from its own random weights; 0 skips the evaluation."""
    statistics_images: Annotated[int, Field(ge=0)] = 0
    """Unlabelled training images to re-estimate BatchNorm statistics on, for a second accuracy beside the strict
    protocol's; 0: none."""


def shrunk_distillation(distill: DistillSettings) -> dict[str, Any]:
    """A few steps on small batches, as far as the method reads them, and little of what it prepares."""
    # Not above: it imports torch, which --help must not wait for.
    from atom.methods.lookup import find_method

    small = {"iterations": min(distill.iterations or 4, 4), "batch_real": min(distill.batch_real, 16)}
    unread = find_method(distill.method).unread
    small = {name: value for name, value in small.items() if name not in unread}
    return small | {n: v for n, v in distill.options.shrunk() if v != getattr(distill.options, n)}


class DistillCommand(CommandSettings):
    """Distil a labelled image set into a few synthetic images per class, and measure what they are worth."""

    prog = "atom-distill"
    first = (
        "dataset",
        "method",
        "preset",
        "ipc",
        "factor",
        "iterations",
        "network",
        "seed",
        "num_actors",
        "output",
        "smoke",
    )

    preset: Literal["best", "paper"] = "best"
    """What flags that are not given are: best, the defaults that were chosen here; paper, those published with the
    method for CIFAR-10 (of atom DataDAM's), at full length, and the protocol."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between checkpoints; a killed run loses at most these. Never changes the result."""
    baselines: tuple[str, ...] | None = None
    """Coresets of equal storage, evaluated beside the distilled set: any of random, herding and kcenter; default all
    three, of more than 200 classes random alone."""
    experts: str | None = None
    """Directory or URI of networks trained on the real images, for mtt, datm, idc and --trained-networks: found there
    by other runs; default in the output."""
    judge_on: Literal["test", "validation"] = "test"
    """Real images that tell accuracies: test, or validation, those that --validation-frac puts aside, to choose
    settings by; such accuracies are not kept in the set."""
    dry_run: bool = False
    """Print the plan and end: units, workers, memory by place, and the time by a few iterations that nobody keeps."""
    data: DataSettings = DataSettings()
    distill: DistillSettings = DistillSettings()
    teacher: TeacherSettings = TeacherSettings()
    judges: JudgeSettings = JudgeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def shrunk(self) -> Self:
        """The same command for a smoke run: a few steps, small batches, one short training."""
        epoch = self.teacher.teacher_epoch
        return self.changed(
            **shrunk_distillation(self.distill),
            teacher_epoch=epoch and min(epoch, 2),
            num_teachers=min(self.teacher.num_teachers, 2),
            checkpoint_every=min(self.checkpoint_every, 2),
            epochs=min(self.evaluate.epochs or 2, 2),
            eval_seeds=min(self.judges.eval_seeds, 1),
        )


class ComparedDistillation(DistillSettings):
    """How the images of all methods are distilled, as far as each reads it."""

    iterations: Annotated[int, Field(ge=0)] | None = None
    """Steps on the images; default each method's own."""
    lr_img: Annotated[float, Field(gt=0)] | None = None
    """Step size on the preprocessed pixels; default each method's own."""
    network: str = "convnet"
    """Network that distils, in whatever way the method does."""


class ComparedTeachers(TeacherSettings):
    """Soft labels for random real images, a row of every table."""

    teacher_epoch: Annotated[int, Field(ge=0)] | None = None
    """Label random real images by what networks say of them after so many epochs; default the experts of the first
    method that learns labels, if there is one."""


class CompareCommand(CommandSettings):
    """Distil by several methods, judge all sets by one protocol beside real images, and tell accuracy and cost."""

    prog = "atom-compare"
    first = (
        "dataset",
        "methods",
        "ipc",
        "settings",
        "network",
        "eval_networks",
        "eval_seeds",
        "num_actors",
        "output",
        "smoke",
    )
    decided = frozenset({"distill.method", "distill.ipc"})
    refused = MappingProxyType(
        {
            "method": "which methods there are is decided by --methods; leave it out, and name them there.",
            "images_in_all": "tables here are by images a class; leave it out, and use atom-distill, which shows real"
            " images of the same number beside the set.",
        }
    )

    methods: tuple[str, ...] = ("atom", "dm", "dsa", "rat-bptt", "mtt")
    """Methods to compare, as atom-distill names them."""
    ipc: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Stored images per class; each number is a table of its own."""
    settings: tuple[str, ...] = ()
    """Settings of single methods, METHOD.NAME=VALUE, such as mtt.syn_steps=30; in a config file also sections, a method
    each."""
    experts: str | None = None
    """Directory or URI of networks trained on the real images: found there by other runs; default in the output."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between checkpoints; a killed run loses at most these. Never changes the result."""
    data: DataSettings = DataSettings()
    distill: ComparedDistillation = ComparedDistillation()
    teacher: ComparedTeachers = ComparedTeachers()
    judges: JudgeSettings = JudgeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @field_validator("settings", mode="before")
    @classmethod
    def _sections(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        sections = {name: of for name, of in given.items() if isinstance(of, Mapping)}
        if len(sections) < len(given):
            return given  # for pydantic to refuse
        return tuple(f"{name}.{key}={value}" for name, of in sections.items() for key, value in of.items())

    def shrunk(self) -> Self:
        """The same command for a smoke run: short trainings; the sets that it asks for are shrunk one by one."""
        epoch = self.teacher.teacher_epoch
        return self.changed(
            teacher_epoch=epoch and min(epoch, 2),
            num_teachers=min(self.teacher.num_teachers, 2),
            checkpoint_every=min(self.checkpoint_every, 2),
            epochs=min(self.evaluate.epochs or 2, 2),
            eval_seeds=min(self.judges.eval_seeds, 2),
        )


class TestData(DataSettings):
    """Where the real images come from."""

    dataset: str = ""
    """Source of the real images; default the one the set was distilled from."""


class EvaluateCommand(CommandSettings):
    """Train networks on a distilled set and test them on real images."""

    prog = "atom-evaluate"
    first = (
        "set",
        "dataset",
        "eval_networks",
        "eval_seeds",
        "epochs",
        "baselines",
        "seed",
        "num_actors",
        "output",
        "smoke",
    )

    set: str = ""
    """The distilled set: a directory, an MLflow URI such as runs:/RUN_ID/set, or a URI such as s3://bucket/out/set."""
    experts: str | None = None
    """Directory or URI of the set's teachers, for real images with their labels; default in the output, where they are
    trained anew."""
    baselines: tuple[str, ...] = ("random",)
    """Coresets of equal storage, evaluated beside the distilled set: any of random, herding and kcenter."""
    seed: int = 0
    """Seed of the first training; the others follow it."""
    data: TestData = TestData()
    judges: JudgeSettings = JudgeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def shrunk(self) -> Self:
        """The same command for a smoke run: one short training."""
        return self.changed(
            epochs=min(self.evaluate.epochs or 2, 2), eval_seeds=min(self.judges.eval_seeds, 1)
        )


class AuditCommand(CommandSettings):
    """Ask what a distilled set gives away: which real images it was made from, and whether it shows copies of them."""

    prog = "atom-audit"
    first = (
        "set",
        "dataset",
        "network",
        "eval_seeds",
        "audit_images",
        "epochs",
        "baselines",
        "seed",
        "num_actors",
        "output",
        "smoke",
    )
    # The set says which images were put aside when it was made.
    decided = frozenset({"data.validation_frac", "data.train_per_class"})

    set: str = ""
    """The distilled set: a directory, an MLflow URI such as runs:/RUN_ID/set, or a URI such as s3://bucket/out/set."""
    network: str = ""
    """Network that is trained on the set and asked about real images; default the one the set was distilled with."""
    eval_seeds: Annotated[int, Field(ge=1)] = 5
    """Trainings on each set, each from its own random weights; an image's loss is the mean over them."""
    audit_images: Annotated[int, Field(ge=2)] = 2000
    """Most members, and most non-members, that are attacked: as many of either, in every class."""
    baselines: tuple[str, ...] = ("random", "herding")
    """Coresets of equal storage, audited beside the distilled set: any of random, herding and kcenter."""
    seed: int = 0
    """Seed of the first training, which the others follow, of the images that are attacked, and of coresets."""
    data: TestData = TestData()
    evaluate: EvaluateSettings = EvaluateSettings()

    def shrunk(self) -> Self:
        """The same command for a smoke run: one short training."""
        return self.changed(epochs=min(self.evaluate.epochs or 2, 2), eval_seeds=1)


class SearchData(DataSettings):
    """Where the real images come from."""

    dataset: str = ""
    """Source of the real images; default the one the first set was distilled from, else digits."""
    validation_frac: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images put aside, on which every proxy scores; sets must be distilled with the same
    share to have never seen them."""


class TinyTraining(EvaluateSettings):
    """How networks are trained on tiny sets."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over a tiny set; default 200 on a GPU (DM, recalled), 100 on a CPU (DC, recalled)."""


class NasCommand(CommandSettings):
    """Rank the networks of a search space by training each on a distilled set, and say how far to trust it."""

    prog = "atom-nas"
    first = (
        "set",
        "dataset",
        "space",
        "sample",
        "proxies",
        "reference",
        "mode",
        "retrain",
        "output",
        "smoke",
    )

    set: tuple[str, ...] = ()
    """Distilled sets: directories, MLflow URIs such as runs:/RUN_ID/set, or URIs such as s3://bucket/out/set;
    default one that is distilled first."""
    seed: int = 0
    """Seed of coresets and of the bootstrap, and of a set distilled here."""
    data: SearchData = SearchData()
    nas: NasSettings = NasSettings()
    evaluate: TinyTraining = TinyTraining()

    def shrunk(self) -> Self:
        """The same command for a smoke run: a few networks, short trainings."""
        nas = self.nas
        # A regression needs ten networks.
        few = 12 if "fitted" in nas.proxies else 4
        return self.changed(
            sample=min(nas.sample or few, few) if ":" not in nas.space else nas.sample,
            ipc=min(nas.ipc, 2),
            iterations=min(nas.iterations or 4, 4),
            epochs=min(self.evaluate.epochs or 2, 2),
            whole_epochs=min(nas.whole_epochs or 1, 1),
            seeds=min(nas.seeds, 2),
            reference_seeds=min(nas.reference_seeds, 2),
            retrain=min(1 if nas.retrain is None and nas.mode == "search" else nas.retrain or 0, 1),
            retrain_seeds=1,
            resamples=min(nas.resamples, 200),
            search_trials=min(nas.search_trials or 4, 4) if nas.mode == "search" else None,
        )


class StreamData(DataSettings):
    """Where the stream of classes comes from."""

    dataset: str = "seq-digits"
    """Stream: seq-digits, seq-mnist, seq-fashionmnist, seq-svhn, seq-cifar10, seq-cifar100, seq-tinyimagenet,
    sessions:PATH, or with --steps any source: cifar10, folder:PATH, parquet:PATH, webdataset:PATH."""


class MemoryDistillation(DistillSettings):
    """How the images of memories are distilled."""

    classes_per_group: Annotated[int, Field(ge=1)] | None = 1
    """Classes distilled together. Alone, their images do not depend on the class order, and are distilled once for all
    orders."""
    seed: int = 0
    """Seed of memories and distillation; every training has a seed of its own."""


class ContinualCommand(CommandSettings):
    """Learn classes that arrive step by step, with small memories of those of the past, distilled ones among them."""

    prog = "atom-continual"
    first = (
        "dataset",
        "steps",
        "memories",
        "learners",
        "budget",
        "network",
        "method",
        "num_actors",
        "output",
        "smoke",
    )
    decided = frozenset({"distill.ipc", "distill.network"})

    set: str = ""
    """A distilled set for the memory "set": a directory, an MLflow URI such as runs:/RUN_ID/set, or another URI."""
    network: str = "convnet"
    """Network of the learners, such as convnet or resnet18."""
    distil_network: str = "convnet"
    """Network whose random copies distil, and embed images for herding, kcenter and the order of distilled ones."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between checkpoints of the distillation; a killed run loses at most these."""
    data: StreamData = StreamData()
    stream: ContinualSettings = ContinualSettings()
    learner: LearnerSettings = LearnerSettings()
    distill: MemoryDistillation = MemoryDistillation()
    evaluate: EvaluateSettings = EvaluateSettings()

    def shrunk(self) -> Self:
        """The same command for a smoke run: one class order, short trainings, a few iterations."""
        return self.changed(
            orders=1,
            order_seeds=self.stream.order_seeds and self.stream.order_seeds[:1],
            seeds=1,
            **shrunk_distillation(self.distill),
            checkpoint_every=min(self.checkpoint_every, 2),
            epochs=min(self.evaluate.epochs or 2, 2),
            step_epochs=min(self.learner.step_epochs or 1, 1),
            joint_epochs=min(self.learner.joint_epochs or 1, 1),
        )
