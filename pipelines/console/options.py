"""Command lines: frozen settings become flags, a YAML file sets any of them, mistakes get one sentence.

Nothing here imports torch, Ray or MLflow, so `--help` answers at once.
"""

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import pydantic
import tyro
import yaml
from pydantic import Field

from apps.continual.settings import ContinualSettings, LearnerSettings
from apps.nas.settings import NasSettings
from atom.errors import ConfigError
from atom.settings import DistillSettings, EvaluateSettings, Settings, Switch

C = TypeVar("C", bound="CommandSettings")
S = TypeVar("S", bound=Settings)

_BOOL = "tag:yaml.org,2002:bool"


class DataSettings(Settings):
    """Where the real images come from."""

    dataset: str = "digits"
    """Source: digits, cifar10, cifar100, mnist, fashionmnist, svhn, tinyimagenet, folder:PATH or parquet:PATH."""
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
    """Column of the labels in parquet files, such as coarse_label; default found by metadata, name or type."""
    test_part: str | None = None
    """Part to test on, of folder: and parquet:; default the first of test and validation that has labels."""
    validation_frac: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training images put aside to choose by, stratified and the same for every command; sets are
    not distilled from them."""
    train_per_class: Annotated[int, Field(ge=1)] | None = None
    """Use only this many training images of each class, drawn at random; default all."""
    symbols: Switch = "auto"
    """Whether the images show digits, letters or the like, which are not mirrored; auto: by the names of the
    classes."""


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


class TrackingSettings(Settings):
    """Where the run is recorded."""

    tracking_uri: str | None = None
    """MLflow tracking URI; default $MLFLOW_TRACKING_URI, else a SQLite file in the output directory."""
    experiment: str | None = None
    """MLflow experiment; default $MLFLOW_EXPERIMENT_NAME, else the command's name."""


class CommandSettings(Settings):
    """What every command takes."""

    config: Path | None = None
    """YAML file that sets any of these flags; flags on the command line win."""
    output: str | None = None
    """Directory or URI (s3://, gs://) for checkpoints and results; default runs/NAME. Rerunning resumes there."""
    smoke: bool = False
    """Shrink everything to seconds, to see that the command runs; the numbers mean nothing."""

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, values: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        # A ConfigError passes through pydantic and tyro unchanged, where a ValidationError becomes a page.
        try:
            return handler(values)
        except pydantic.ValidationError as error:
            raise ConfigError(_first_problem(error)) from None

    def part(self, kind: type[S]) -> S:
        """The settings of one component, out of the command's."""
        return kind.model_validate({name: getattr(self, name) for name in kind.model_fields})


class EvaluationChoice(Settings):
    """Which networks judge a set."""

    eval_networks: tuple[str, ...] | None = None
    """Networks trained on the set, by the names of docs/evaluate.md; default the one it was distilled with, and the
    same with BatchNorm."""
    eval_seeds: Annotated[int, Field(ge=0)] = 5
    """Trainings of each network, each from its own random weights; 0 skips the evaluation."""
    statistics_images: Annotated[int, Field(ge=0)] = 0
    """Unlabelled training images to re-estimate BatchNorm statistics on, for a second accuracy beside the strict
    protocol's; 0: none."""


class DistillCommand(
    # In reverse of the order that --help lists them.
    TrackingSettings,
    ClusterSettings,
    EvaluationChoice,
    EvaluateSettings,
    DistillSettings,
    DataSettings,
    CommandSettings,
):
    """Distil a labelled image set into a few synthetic images per class, and measure what they are worth."""

    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between checkpoints; a killed run loses at most these. Never changes the result."""
    baselines: tuple[str, ...] = ("random", "herding", "kcenter")
    """Coresets of equal storage, evaluated beside the distilled set: any of random, herding and kcenter."""

    def shrunk(self) -> Self:
        """The same command for a smoke run: a few steps, small batches, one short training."""
        return self.model_copy(
            update={
                "iterations": min(self.iterations or 4, 4),
                "batch_real": min(self.batch_real, 16),
                "checkpoint_every": min(self.checkpoint_every, 2),
                "epochs": min(self.epochs or 2, 2),
                "eval_seeds": min(self.eval_seeds, 1),
            }
        )


class EvaluateCommand(
    TrackingSettings, ClusterSettings, EvaluationChoice, EvaluateSettings, DataSettings, CommandSettings
):
    """Train networks on a distilled set and test them on real images."""

    set: str = ""
    """The distilled set: a directory, an MLflow URI such as runs:/RUN_ID/set, or a URI such as s3://bucket/out/set."""
    dataset: str = ""
    """Source of the real test images; default the one the set was distilled from."""
    baselines: tuple[str, ...] = ("random",)
    """Coresets of equal storage, evaluated beside the distilled set: any of random, herding and kcenter."""
    seed: int = 0
    """Seed of the first training; the others follow it."""

    def shrunk(self) -> Self:
        """The same command for a smoke run: one short training."""
        return self.model_copy(
            update={"epochs": min(self.epochs or 2, 2), "eval_seeds": min(self.eval_seeds, 1)}
        )


class NasCommand(
    TrackingSettings, ClusterSettings, EvaluateSettings, NasSettings, DataSettings, CommandSettings
):
    """Rank the networks of a search space by training each on a distilled set, and say how far to trust it."""

    set: tuple[str, ...] = ()
    """Distilled sets: directories, MLflow URIs such as runs:/RUN_ID/set, or URIs such as s3://bucket/out/set;
    default one that is distilled first."""
    dataset: str = ""
    """Source of the real images; default the one the first set was distilled from, else digits."""
    validation_frac: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images put aside, on which every proxy scores; sets must be distilled with the same
    share to have never seen them."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over a tiny set; default 200 on a GPU (DM, recalled), 100 on a CPU (DC, recalled)."""
    seed: int = 0
    """Seed of coresets and of the bootstrap, and of a set distilled here."""

    def shrunk(self) -> Self:
        """The same command for a smoke run: a few networks, short trainings."""
        return self.model_copy(
            update={
                "sample": min(self.sample or 4, 4) if ":" not in self.space else self.sample,
                "ipc": min(self.ipc, 2),
                "iterations": min(self.iterations or 4, 4),
                "epochs": min(self.epochs or 2, 2),
                "whole_epochs": min(self.whole_epochs or 1, 1),
                "seeds": min(self.seeds, 2),
                "reference_seeds": min(self.reference_seeds, 2),
                "retrain": min(self.retrain, 1),
                "retrain_seeds": 1,
                "resamples": min(self.resamples, 200),
                "search_trials": min(self.search_trials, 4),
            }
        )


class ContinualCommand(
    TrackingSettings,
    ClusterSettings,
    DistillSettings,
    EvaluateSettings,
    LearnerSettings,
    ContinualSettings,
    DataSettings,
    CommandSettings,
):
    """Learn classes that arrive step by step, with small memories of those of the past, distilled ones among them."""

    dataset: str = "seq-digits"
    """Stream: seq-digits, seq-mnist, seq-fashionmnist, seq-svhn, seq-cifar10, seq-cifar100, seq-tinyimagenet, or with
    --steps any source: digits, cifar10, ..., folder:PATH or parquet:PATH."""
    set: str = ""
    """A distilled set for the memory "set": a directory, an MLflow URI such as runs:/RUN_ID/set, or another URI."""
    network: str = "convnet"
    """Network of the learners, such as convnet or resnet18."""
    distil_network: str = "convnet"
    """Network whose random copies distil, and embed images for herding, kcenter and the order of distilled ones."""
    ipc: tyro.conf.Suppress[int] = 1
    """Decided by --budget."""
    classes_per_group: Annotated[int, Field(ge=1)] = 1
    """Classes distilled together. Alone, their images do not depend on the class order, and are distilled once for all
    orders."""
    seed: int = 0
    """Seed of memories and distillation; every training has a seed of its own."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between checkpoints of the distillation; a killed run loses at most these."""

    def shrunk(self) -> Self:
        """The same command for a smoke run: one class order, short trainings, a few iterations."""
        return self.model_copy(
            update={
                "orders": 1,
                "order_seeds": self.order_seeds and self.order_seeds[:1],
                "seeds": 1,
                "iterations": min(self.iterations or 4, 4),
                "batch_real": min(self.batch_real, 16),
                "checkpoint_every": min(self.checkpoint_every, 2),
                "epochs": min(self.epochs or 2, 2),
                "step_epochs": min(self.step_epochs or 1, 1),
                "joint_epochs": min(self.joint_epochs or 1, 1),
            }
        )


def parse(command: type[C], argv: Sequence[str] | None = None, *, prog: str) -> C:
    """Settings from command line and YAML file.

    Raises:
        ConfigError: a value is out of range, or the YAML file is wrong.
        SystemExit: with code 2 after tyro's message on an unknown or malformed flag, 0 after --help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = _config_path(arguments)
    default = command() if path is None else _from_config(command, path, prog=prog)
    return tyro.cli(command, prog=prog, args=arguments, default=default)


def _first_problem(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "settings"
    return f"--{place.replace('_', '-')}: received {first['input']!r}: {first['msg'].lower()}."


def _from_config(command: type[C], path: Path, *, prog: str) -> C:
    content = _read_config(path)
    for name in content:
        if name not in command.model_fields:
            close = difflib.get_close_matches(name, command.model_fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"`{prog} --help` lists the settings."
            raise ConfigError(f"--config {path}: {name!r} is not a setting of {prog}; {hint}")
    try:
        return command.model_validate(content)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None


class _Words(yaml.SafeLoader):
    """YAML 1.1 takes off, on, no and yes for booleans; here they are the words that flags take, as in YAML 1.2."""


_Words.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in known if tag != _BOOL]
    for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Words.add_implicit_resolver(_BOOL, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def _read_config(path: Path) -> dict[str, object]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Words)
    except OSError as error:
        raise ConfigError(
            f"--config {path}: cannot be read ({error.strerror}); pass an existing YAML file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"--config {path}: is not valid YAML ({problem}); expected lines such as `ipc: 10`."
        ) from None
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(
            f"--config {path}: holds {kind}, expected lines of setting and value such as `ipc: 10`."
        )
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _config_path(arguments: Sequence[str]) -> Path | None:
    for place, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config="))
        if argument == "--config" and place + 1 < len(arguments):
            return Path(arguments[place + 1])
    return None
