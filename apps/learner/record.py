"""What `learner.json` says: what a learner is, and each of its versions."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

FORMAT_VERSION = 1

_KEPT_FILE = re.compile(r"(memory|tests)/[^/\\]+\.safetensors")


def _inside(name: str) -> str:
    # The directory may come from elsewhere: no name of it leads out of it.
    if not _KEPT_FILE.fullmatch(name):
        raise ValueError("should be memory/NAME.safetensors or tests/NAME.safetensors")
    return name


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Kept(_Part):
    """A file of images of one class."""

    file: Annotated[str, AfterValidator(_inside)]
    sha256: str
    kind: Literal["distilled", "herding", "random", "tests"]
    images: Annotated[int, Field(ge=0)]
    """Stored ones."""
    num_bytes: Annotated[int, Field(ge=0)]
    """Of the images as stored."""
    stands_for: Annotated[int, Field(ge=0)]
    """Real images behind them, over all steps."""


class Accuracy(_Part):
    """Of one class, percent of its test images; None where it was not measured."""

    before: float | None = None
    """By the version before, among the classes that it knows."""
    after: float | None = None
    images: int = 0
    """That were asked about."""


class Version(_Part):
    """One version of the learner."""

    number: Annotated[int, Field(ge=1)]
    parent: int | None
    """The version that it goes on from."""
    step: Literal["init", "add", "forget"]
    classes: list[str]
    """In the order of the labels, which are the outputs of the network."""
    learned: dict[str, int] = {}
    """Real images of this step by class; of forget none."""
    images: str = ""
    """Fingerprint of these."""
    key: str
    """Digest of all that decides this version."""
    memory: dict[str, Kept] = {}
    tests: dict[str, Kept] = {}
    accuracies: dict[str, Accuracy] = {}
    judged_by: str = ""
    """Where the test images were from; nothing where there were none."""
    note: str = ""
    """Why it did not become current; nothing where it did."""
    removed: str = ""
    """Why its directory is gone; nothing where it is there."""
    sha256: dict[str, str] = {}
    """Of the tensor files in its directory."""


class Learner(_Part):
    """`learner.json`."""

    format_version: int
    network: Annotated[str, Field(min_length=1)]
    """As `atom.nets.build` knows it; a user's own by file name and function, without the place."""
    identity: str
    """Of the network, for a user's own with a digest of its sources."""
    head: list[str]
    """Tensors of the network that have a row for each output."""
    given_weights: bool = False
    """Whether it begins with weights of a file, `initial.safetensors`."""
    channels: Annotated[int, Field(ge=1)]
    image_size: Annotated[list[int], Field(min_length=2, max_length=2)]
    resize: int | None = None
    """What all images are cropped and resized to; None: as they are."""
    symbols: bool
    settings: dict[str, dict[str, Any]]
    """By part, as they were given."""
    sha256: dict[str, str]
    """Of the tensor files beside this one."""
    versions: list[Version] = []

    @field_validator("settings")
    @classmethod
    def _no_code(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        parts = ("choices", "training", "distill", "evaluate")
        if set(settings) != set(parts):
            raise ValueError(f"should have the parts {', '.join(parts)}")
        # The directory may come from elsewhere, and no code is run because it names it.
        for name in ("network", "method"):
            if ":" in str(settings["distill"].get(name, "")):
                raise ValueError(f"distill.{name} should be one of this project's")
        return settings

    def version(self, number: int) -> Version | None:
        """The one of that number, or None."""
        return next((one for one in self.versions if one.number == number), None)


__all__ = ["FORMAT_VERSION", "Accuracy", "Kept", "Learner", "Version"]
