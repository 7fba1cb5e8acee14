"""What `winner.json` says of a delivered network."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class Spread(BaseModel):
    """Accuracy in percent of trainings that differ in the seed, and of the one that is delivered."""

    model_config = ConfigDict(strict=True, extra="ignore")

    mean: float
    std: float | None
    """None where there is one training only."""
    n: Positive
    delivered: float


class Config(BaseModel):
    """`winner.json`, all that the other files do not say."""

    model_config = ConfigDict(strict=True, extra="ignore")

    format_version: int
    network: Annotated[str, Field(min_length=1)]
    space: Annotated[str, Field(min_length=1)]
    """What --space was; the network's name is looked up there."""
    identity: str = ""
    """The network's name, and for a user's own the digest of its source when it was trained."""
    channels: Positive
    image_size: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    num_classes: Positive
    class_names: list[str]
    seed: int
    parameters: int | None = None
    multiply_adds: int | None = None
    chosen_by: dict[str, Any] = {}
    """The proxy, the network's mean score by it, and how many networks had one."""
    training: dict[str, Any] = {}
    validation_accuracy: Spread
    test_accuracy: Spread
    data: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    sha256: dict[str, str]
    """Of the two tensor files: their own format notices a short file, not a flipped bit."""
