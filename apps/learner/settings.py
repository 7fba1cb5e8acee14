"""What a learner is told: once when it begins, and at every step."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from atom.settings import Settings, Switch

Memory = Literal["distilled", "herding", "random"]
DISTILLED = "distilled"


class StepImages(Settings):
    """The new images of this step."""

    data: str = ""
    """New images: folder:PATH with a directory a class, or another source, such as fashionmnist, npz:PATH,
    parquet:PATH or webdataset:PATH."""
    classes: tuple[str, ...] | None = None
    """Classes of the source to take, by name; default all."""
    test: str = ""
    """Source of test images, old classes' too, to judge by; its test part, where it has one. Nothing of it is kept."""
    validation_frac: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the new images put aside to say whether distilled images or real ones (herding) stored more accuracy a
    byte; 0: not asked."""
    data_dir: Path = Path("data")
    """Where official files lie or are downloaded to."""
    download: bool = True
    """Whether a missing official source may be downloaded."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and say how many, instead of stopping at the first."""


class FirstImages(StepImages):
    """The images of the first step, and what all images are like."""

    image_size: Annotated[int, Field(ge=4)] | None = None
    """Crop all images, later ones too, to their centre square and resize it to this many pixels a side; default as they
    are."""
    symbols: Switch = "auto"
    """Whether the images show digits, letters or the like, which are not mirrored; auto: by the names of the
    classes."""


class LearnerChoices(Settings):
    """What the learner is, for good."""

    learner: Literal["er-ace", "er", "der++", "gdumb"] = "er-ace"
    """er-ace, er and der++ go on with the network, on the new images beside the memory; gdumb trains a new one on the
    memory alone. Default chosen, measured: see docs/learner.md."""
    memory: Memory = "distilled"
    """What stands for the images of a class from now on: distilled ones, or real ones, by herding or at random."""
    budget: str = "20/class"
    """Size of the memory: "20/class", "2000 images", or bytes as stored, "600kB" or "60kB/class"."""
    storage: Literal["uint8-scaled", "uint8", "float32"] = "uint8-scaled"
    """Form of distilled images in memory; real ones are uint8."""
    compress: bool = False
    """Keep the images of the memory as lossless WebP files, and count these."""
    keep_tests: Annotated[int, Field(ge=0)] = 0
    """Real images of every class to keep for good, to test by what later steps do to it; not learned from. 0: none."""


class GateSettings(Settings):
    """Whether a version may become the current one."""

    max_drop: Annotated[float, Field(ge=0, le=100)] = 10.0
    """Most points of test accuracy that an old class may lose; else the version is kept, but does not become current.
    Default chosen: two of twenty images."""


__all__ = ["DISTILLED", "FirstImages", "GateSettings", "LearnerChoices", "Memory", "StepImages"]
