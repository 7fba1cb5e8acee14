"""The sub-commands of `atom-learner`: their settings, parts from beside the code that reads them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, create_model

from apps.continual.settings import LearnerSettings
from apps.learner.settings import FirstImages, GateSettings, LearnerChoices, StepImages
from atom.settings import EvaluateSettings
from pipelines.console.commands import MemoryDistillation
from pipelines.console.options import CommandSettings

_LEFT_OUT = frozenset({"output", "smoke"})
_PLAIN = _LEFT_OUT | {"config", "cluster", "tracking"}


class OnLearner(CommandSettings):
    """A sub-command on the directory of a learner."""

    hidden = _PLAIN
    positional = ("directory",)

    directory: str = ""
    """The learner's directory."""


class OnNetwork(OnLearner):
    """A sub-command that builds the learner's network."""

    network: str = ""
    """A network of your own, PATH.py:FUNCTION, once more: its code is run only where you name it; others: leave it
    out."""


class InitCommand(OnLearner):
    """Begin a learner: its first classes."""

    prog = "atom-learner init"
    hidden = _LEFT_OUT
    first = (
        "data",
        "network",
        "weights",
        "learner",
        "memory",
        "budget",
        "keep_tests",
        "test",
        "image_size",
        "num_actors",
        "dry_run",
    )
    decided = frozenset(
        {"distill.ipc", "distill.network", "distill.classes_per_group", "training.joint_epochs"}
    )

    network: str = "convnet"
    """Network of the learner, such as convnet or resnet18, or your own, PATH.py:FUNCTION."""
    weights: Path | None = None
    """File of weights that the network begins with, safetensors or PyTorch's; its head is made anew."""
    distil_network: str = "convnet"
    """Network whose random copies distil, and embed images for herding and the order of distilled ones."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between checkpoints of the distillation; a killed run loses at most these."""
    dry_run: bool = False
    """Only say what would be needed, in time, memory and images."""
    images: FirstImages = FirstImages()
    choices: LearnerChoices = LearnerChoices()
    training: LearnerSettings = LearnerSettings()
    distill: MemoryDistillation = MemoryDistillation()
    evaluate: EvaluateSettings = EvaluateSettings()


class AddCommand(OnNetwork):
    """Learn new classes, or classes that come back, from their new images alone."""

    prog = "atom-learner add"
    hidden = _LEFT_OUT
    first = (
        "data",
        "classes",
        "test",
        "max_drop",
        "memory",
        "network",
        "num_actors",
        "dry_run",
    )

    memory: Literal["distilled", "herding", "random"] | None = None
    """What stands for the images of this step's classes; default as at the start."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between checkpoints of the distillation; a killed run loses at most these."""
    dry_run: bool = False
    """Only say what would be needed, in time, memory and images."""
    images: StepImages = StepImages()
    gate: GateSettings = GateSettings()


class ShowCommand(OnLearner):
    """Show a learner: classes, memory, versions, and what of whose data is where."""

    prog = "atom-learner show"


class PredictCommand(OnNetwork):
    """Name the class of every image of a file or folder, by the current version."""

    prog = "atom-learner predict"
    positional = ("directory", "photos")

    photos: str = ""
    """An image, or a folder of images."""


class RollbackCommand(OnLearner):
    """Make another version the current one; none is deleted."""

    hidden = _PLAIN - {"tracking"}
    prog = "atom-learner rollback"

    to: Annotated[int, Field(ge=1)] | None = None
    """Number of the version."""


# A field that Python could not name.
_OfClass = create_model(
    "_OfClass", __base__=OnLearner, **{"class": (str, Field(default="", description="The class, by name."))}
)


class ForgetCommand(_OfClass):
    """Remove a class: its memory, its test images, its output, and the versions that know it."""

    hidden = _PLAIN - {"tracking"}
    prog = "atom-learner forget"

    @property
    def name(self) -> str:
        """Of the class."""
        return getattr(self, "class")


class ExportCommand(OnNetwork):
    """Write the current version as one file, preprocessing and probabilities inside, for programs without this one."""

    prog = "atom-learner export"

    format: Literal["onnx", "torchscript"] = "torchscript"
    """Of the file: onnx (needs the packages of the extra `onnx`) or torchscript."""
    file: Path | None = None
    """Where to write; default exports/0001.onnx and the like in the learner's directory. The classes are written beside
    it, with .json."""


SUB_COMMANDS: dict[str, type[OnLearner]] = {
    kind.prog.partition(" ")[2]: kind
    for kind in (
        InitCommand,
        AddCommand,
        ShowCommand,
        PredictCommand,
        RollbackCommand,
        ForgetCommand,
        ExportCommand,
    )
}

__all__ = [
    "SUB_COMMANDS",
    "AddCommand",
    "ExportCommand",
    "ForgetCommand",
    "InitCommand",
    "OnLearner",
    "OnNetwork",
    "PredictCommand",
    "RollbackCommand",
    "ShowCommand",
]
