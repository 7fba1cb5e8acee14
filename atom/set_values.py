"""What a distilled set is, without files: images, labels and preprocessing, decoded, as pixels, as a `Dataset`.

`atom.distilled.DistilledSet` adds what needs the layers above: reading, writing, checking, pictures.
"""

# N stored images, M = N*factor**2 decoded images, C channels, H height, W width, K classes

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from atom import formation
from atom.errors import ShapeError
from atom.preprocess import Preprocess
from atom.symbols import named_like_symbols

if TYPE_CHECKING:
    from atom.data.image_set import RealData


CLIPPED_BEYOND = 0.5 / 255
"""How far outside [0, 1] a pixel may lie and still be shown as it is: half a level of 8 bits."""


@dataclass(frozen=True, eq=False)
class SetValues:
    """The images, their labels, how they came to be and how to bring real images to them.

    Attributes:
        images_NCHW: float32, as optimised: preprocessed pixels, around 0; class by class. N = K * ipc, or fewer in a
            set of images in all, which has soft labels: then as `atom.settings.images_of_classes` says.
        labels: int64 [N].
        class_names: K distinct names; the index is the label.
        ipc: stored images per class, in a set of images in all of those that have most.
        factor: a stored image holds factor x factor smaller ones, see `decode`.
        method: "atom", "spatial", "channel", "dm", somebody's own, or a coreset: "random", "herding", "kcenter".
        preprocess: fitted on the real training images.
        settings: of the run that made it.
        source: of the real images: name, spec without a path, fingerprint, title, citation, licence, image_shape,
            num_train, symbols, image_size and crop, how they were brought to that shape, and started_from, the sources
            of the set that its images started from.
        versions: of the libraries that made it, when the images were computed.
        git_commit: of this project when they were, or None outside a checkout.
        earlier_programs: `git_commit` and `versions` of other programs that computed a part of the images before.
        results: evaluations, a dict each: method, network, mean, std (percent), n (trainings), epochs, ...
        soft_labels: float32 [N, K], each row a distribution over classes, or None.
        training: how a network is to be trained on it, where that was distilled with it: some fields of
            `OwnTraining`, such as a step size. Empty: by the common protocol.
        audit: what `atom-audit` found that the set gives away of its source; empty: it was not audited.
        about: of a method that is not this project's: "made_by" and "citation", as in `atom.methods.method.About`.

    Tensors are detached and brought to the CPU. The dicts hold plain JSON values: tuples become lists, NumPy
    scalars numbers, NaN None.
    """

    images_NCHW: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    ipc: int
    method: str
    preprocess: Preprocess
    factor: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    results: Sequence[Mapping[str, Any]] = ()
    soft_labels: Tensor | None = None
    earlier_programs: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for name in ("results", "earlier_programs"):
            object.__setattr__(self, name, tuple(plain(row) for row in getattr(self, name)))
        for name in ("settings", "source", "versions", "training", "about", "audit"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in ("images_NCHW", "labels", "soft_labels"):
            tensor = getattr(self, name)
            object.__setattr__(self, name, None if tensor is None else tensor.detach().cpu())

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def per_class(self) -> list[int]:
        """Stored images of each class."""
        return torch.bincount(self.labels, minlength=self.num_classes).tolist()

    @property
    def is_even(self) -> bool:
        """Whether there are `ipc` images of every class."""
        return len(self.labels) == self.num_classes * self.ipc

    @property
    def size(self) -> str:
        """How many images there are, for people: "ipc 2" or "3 images in all"."""
        if self.is_even:
            return f"ipc {self.ipc}"
        return f"{len(self.labels)} {'image' if len(self.labels) == 1 else 'images'} in all"

    @property
    def size_slug(self) -> str:
        """The same for names of runs: "ipc2" or "images3"."""
        return f"ipc{self.ipc}" if self.is_even else f"images{len(self.labels)}"

    @property
    def symbols(self) -> bool:
        """Whether the images show written symbols, which training must not mirror; see `RealData.symbols`."""
        said = self.source.get("symbols")
        # Sets made before it was recorded, or by hand, have their class names.
        return said if isinstance(said, bool) else named_like_symbols(self.class_names)

    @property
    def sources(self) -> list[Mapping[str, Any]]:
        """What its images come from, each once: its own source, and those of the sets that it started from."""
        found: list[Mapping[str, Any]] = [
            {name: value for name, value in self.source.items() if name != "started_from"}
        ]
        for one in self.source.get("started_from") or ():
            if one not in found:
                found.append(one)
        return found

    def decode(self) -> tuple[Tensor, Tensor]:
        """What a network trains on: images float32 [M, C, H, W] in preprocessed space, and targets.

        The targets are labels int64 [M], or float32 [M, K] where the set has soft labels; `cross_entropy` takes both.
        """
        targets = self.labels if self.soft_labels is None else self.soft_labels
        return formation.decode(self.images_NCHW, self.factor), formation.label_decoded(targets, self.factor)

    def decoded_labels(self) -> Tensor:
        """The class of each decoded image, int64 [M], soft labels or not."""
        return formation.label_decoded(self.labels, self.factor)

    def preprocess_images(self, real_NCHW: np.ndarray | Tensor) -> Tensor:
        """Real images in the space of the distilled ones, float32: what a network trained on the set expects.

        Args:
            real_NCHW: uint8 in 0..255, or floating pixels in [0, 1].

        Raises:
            ShapeError: other channels or size than the set's own images.
            DataError: floating images that are no pixels in [0, 1].
        """
        if tuple(real_NCHW.shape[1:]) != tuple(self.images_NCHW.shape[1:]):
            raise ShapeError(
                f"images have shape {tuple(real_NCHW.shape)}, but those of this set are"
                f" [N, {', '.join(map(str, self.images_NCHW.shape[1:]))}]; crop and resize them as its source was."
            )
        return self.preprocess.apply(real_NCHW)

    def pixels(self, *, stretched: bool = False) -> Tensor:
        """The decoded images for the eye: float32 [M, C, H, W] in [0, 1], preprocessing undone, clipped.

        Decoded first: the whitening is that of full-size images, and does not fit a grid of smaller ones.

        Args:
            stretched: bring each image's values from their 1st to their 99th percentile, all channels together,
                to the whole of [0, 1] before clipping: its shapes show, its brightness and contrast do not.
        """
        pixels_MCHW = self._unclipped()
        if stretched:
            flat_MD = pixels_MCHW.flatten(1)
            low_M, high_M = torch.quantile(flat_MD, torch.tensor([0.01, 0.99]), dim=1)
            # An image of one value has no contrast to stretch, and stays as it is.
            flat_M = high_M <= low_M
            low_M, width_M = low_M.masked_fill(flat_M, 0), (high_M - low_M).masked_fill(flat_M, 1)
            pixels_MCHW = ((flat_MD - low_M[:, None]) / width_M[:, None]).view_as(pixels_MCHW)
        return pixels_MCHW.clamp(0, 1)

    def clipped_frac(self) -> float:
        """Share of the values of the decoded images that lie outside [0, 1] as pixels, which pictures cut off."""
        pixels_MCHW = self._unclipped()
        # Real images come back from the whitening with rounding errors of their own.
        outside_MCHW = (pixels_MCHW < -CLIPPED_BEYOND) | (pixels_MCHW > 1 + CLIPPED_BEYOND)
        return outside_MCHW.float().mean().item()

    def _unclipped(self) -> Tensor:
        return self.preprocess.invert(self.decode()[0])

    def dataset(
        self,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> "DistilledDataset":
        """The decoded images as a `torch.utils.data.Dataset` of (image, int label), or (image, soft label [K])."""
        return DistilledDataset(self, transform=transform, target_transform=target_transform)

    def with_results(self, results: Sequence[Mapping[str, Any]]) -> Self:
        """The same set with other evaluation rows."""
        return dataclasses.replace(self, results=results)


class DistilledDataset(Dataset[tuple[Any, Any]]):
    """The decoded images of a set with the attributes of torchvision's datasets, without torchvision.

    An item is (image, label); the label is a class as int, or float32 [K] where the set has soft labels.

    Attributes:
        data: float32 [M, C, H, W], preprocessed.
        targets: M int labels.
        soft_targets: float32 [M, K], or None.
        classes: class names, the index is the label.
        class_to_idx: label by class name.
    """

    def __init__(
        self,
        distilled: SetValues,
        *,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data, targets = distilled.decode()
        self.targets: list[int] = distilled.decoded_labels().tolist()
        self.soft_targets = None if distilled.soft_labels is None else targets
        self.classes = list(distilled.class_names)
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        self.transform = transform
        self.target_transform = target_transform
        self._about = f"{distilled.method}, {distilled.size}, factor {distilled.factor}"

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = self.data[index]
        target = self.targets[index] if self.soft_targets is None else self.soft_targets[index]
        if self.transform is not None:
            image = self.transform(image)
        return image, target if self.target_transform is None else self.target_transform(target)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.data.shape[1:]))
        return f"DistilledDataset({self._about}): {len(self)} images of {shape}, {len(self.classes)} classes"


def describe_source(real: "RealData", *, image_size: int | None = None) -> dict[str, Any]:
    """The `source` of a set made from these real images, as the card and `set.json` expect it.

    A set is passed on, so it says what its source is and not where that lies: no path of this machine.

    Args:
        real: what the set was made from.
        image_size: what the images were cropped and resized to when they were loaded; None: left as they were.
    """
    return {
        "name": real.name,
        "spec": real.kind,
        "fingerprint": real.train.fingerprint,
        "num_train": len(real.train.labels),
        "num_validation": 0 if real.validation is None else len(real.validation.labels),
        "image_shape": list(real.train.images.shape[1:]),
        "symbols": real.symbols,
        "image_size": image_size,
        "crop": None if image_size is None else "the centre square of each image, resized to image_size",
        **dataclasses.asdict(real.source),
    }


def without_folders(network: str) -> str:
    """A network's name as a published set may hold it: of `path/to/net.py:build` the file and the function."""
    file, colon, function = network.rpartition(":")
    return f"{Path(file).name}{colon}{function}" if colon else network


def plain(value: Any) -> Any:
    """The value as JSON can hold it: dicts, lists, strings, finite numbers, booleans, None.

    Anything else becomes its string, so that a record of a run is never the reason why the run fails.
    """
    if isinstance(value, str):
        # A path that is not UTF-8 holds surrogates, which no file could be written with.
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | torch.Size):
        return [
            plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)
        ]
    if isinstance(value, np.ndarray | Tensor):
        return plain(value.tolist())
    return str(value)
