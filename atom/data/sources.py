"""Real images by a short spec string: which source a spec names, and `load`."""

import difflib
from collections.abc import Callable
from pathlib import Path

from atom.data.cifar import read_cifar
from atom.data.decode import Decode, OnDecoded, resize_images
from atom.data.digits import read_digits
from atom.data.download import OnDownload
from atom.data.folder import read_folder
from atom.data.idx import read_idx
from atom.data.image_set import ImageSet, RealData
from atom.data.imagenet import read_imagenet
from atom.data.imagenet_subsets import SUBSETS, read_imagenet_subset
from atom.data.npz import read_npz
from atom.data.parquet import read_parquet
from atom.data.place import place_of, split_pattern
from atom.data.request import Request, cache_folder
from atom.data.sessions import read_sessions
from atom.data.svhn import read_svhn
from atom.data.tinyimagenet import read_tinyimagenet
from atom.data.webdataset import read_webdataset
from atom.errors import ConfigError
from atom.filesystem import is_uri
from atom.redact import without_secrets

SESSIONS = "sessions"
READERS: dict[str, Callable[[Request], RealData]] = {
    "digits": read_digits,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "mnist": read_idx,
    "fashionmnist": read_idx,
    "svhn": read_svhn,
    "tinyimagenet": read_tinyimagenet,
    "imagenet": read_imagenet,
    **dict.fromkeys(SUBSETS, read_imagenet_subset),
    "folder": read_folder,
    SESSIONS: read_sessions,
    "parquet": read_parquet,
    "webdataset": read_webdataset,
    "npz": read_npz,
}
OWN = ("folder", SESSIONS, "parquet", "webdataset", "npz")
"""A user's own images, of which nothing is known."""
NEED_PATH = ("imagenet", *SUBSETS, *OWN)
FROM_URI = ("imagenet", *SUBSETS, "folder", SESSIONS, "parquet", "webdataset")
"""Sources whose place may be a URI, as in folder:s3://bucket/pets."""
NO_PATH = ("digits",)
NOT_KEPT = ("digits", "mnist", "fashionmnist", "svhn", "npz")
"""Sources that are read as fast as decoded images would be, and so leave none in the cache."""
TAKERS = {
    "--image-column": ("parquet",),
    "--label-column": ("parquet", "webdataset"),
    "--test-part": ("folder", "parquet", "webdataset", "npz"),
    "--class-names": ("webdataset", "npz"),
}
"""Which sources have a choice; those with class names of their own keep them."""
MAX_IMAGE_SIZE = 1024


def known_specs() -> tuple[str, ...]:
    """The specs `load` understands, as they are written."""
    return tuple(f"{name}:PATH" if name in NEED_PATH else name for name in READERS)


def load(
    spec: str,
    *,
    data_dir: Path,
    image_size: int | None = None,
    allow_download: bool = True,
    skip_broken: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    test_part: str | None = None,
    class_names: tuple[str, ...] | None = None,
    on_download: OnDownload | None = None,
    on_decoded: OnDecoded | None = None,
    decode_elsewhere: Decode | None = None,
    keep_decoded: bool = True,
) -> RealData:
    """Real images with their official split.

    Args:
        spec: one of `known_specs()`; a source with files may name their place after a colon, as in
            "fashionmnist:/srv/fashion", which is then only read, never downloaded to; that of `FROM_URI` may be a URI.
        data_dir: where files are looked for and downloaded to, and where decoded arrays are cached.
        image_size: side in pixels to bring all images to (shorter side, then the centre square); None keeps
            the images as they are, and they must then be square and of one size.
        allow_download: fetch the missing files of cifar10, cifar100, mnist, fashionmnist and svhn.
        skip_broken: leave out images that cannot be decoded, and list them in `RealData.skipped`.
        image_column: column of the images in parquet files; None finds it.
        label_column: column of the labels in parquet files, or field of those in webdataset:'s JSON; None finds it.
        test_part: directory (folder:), split (parquet:, webdataset:) or "val" (npz:) to test on; None takes the first
            labelled one of test, validation and their other names.
        class_names: of npz: and webdataset:, in the order of the labels; None calls the classes by their numbers.
        on_download: called while a file is downloaded, with its name, the bytes received, and all its bytes if known.
        on_decoded: called while many encoded images are decoded, with their number so far and in all.
        decode_elsewhere: decodes many encoded images, by `atom.data.decode.outcome_of`; None: this process does.
        keep_decoded: whether decoded images stay in the cache under `data_dir`.

    Raises:
        ConfigError: the spec or the size is not understood.
        DataError: files are missing or broken; the message names the first one.

    Example:
        >>> digits = load("digits", data_dir=Path("data"))
        >>> digits.train.images.shape, digits.test.images.shape
        ((1442, 1, 8, 8), (355, 1, 8, 8))
    """
    name, colon, place = spec.partition(":")
    name = name.strip().lower()
    _check_spec(spec, name, place if colon else None)
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise ConfigError(
            f"--image-size {image_size} is out of range; expected 1 to {MAX_IMAGE_SIZE} pixels."
        )
    choices = (image_column, label_column, test_part, None if class_names is None else " ".join(class_names))
    _check_choices(name, dict(zip(TAKERS, choices, strict=True)))
    if is_uri(place) and name not in FROM_URI:
        raise ConfigError(
            f"--dataset {spec}: {name} is read from paths only; URIs are for {_listed(FROM_URI)}."
        )
    pattern = ""
    if name == "webdataset":
        place, pattern = split_pattern(place)
    request = Request(
        spec=without_secrets(spec),
        name=name,
        path=place_of(place, spec=spec) if place else None,
        data_dir=Path(data_dir).expanduser(),
        image_size=image_size,
        allow_download=allow_download,
        skip_broken=skip_broken,
        image_column=image_column,
        label_column=label_column,
        test_part=test_part,
        class_names=class_names,
        on_download=on_download,
        on_decoded=on_decoded,
        decode_elsewhere=decode_elsewhere,
        keep_decoded=keep_decoded,
        pattern=pattern,
    )
    data = READERS[name](request)
    return data if image_size is None else _resized(data, image_size)


def decoded_folder(spec: str, data_dir: Path) -> Path | None:
    """Where decoded images of a source lie; None where they lie in memory.

    Example:
        >>> decoded_folder("cifar10", Path("data")), decoded_folder("npz:set.npz", Path("data"))
        (PosixPath('data/cache'), None)
    """
    kept = spec.partition(":")[0].strip().lower() not in NOT_KEPT
    return cache_folder(data_dir.expanduser()) if kept else None


def _check_spec(spec: str, name: str, place: str | None) -> None:
    """Refuse a spec that names no source, or has a path too many or too few."""
    if name not in READERS:
        close = difflib.get_close_matches(name, READERS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if not close and Path(spec).is_dir():
            hint = f" For a directory of your own, pass folder:{spec}, parquet:{spec} or webdataset:{spec}."
        elif is_uri(spec):
            hint = f" For images at a URI, pass folder:{spec}, parquet:{spec} or webdataset:{spec}."
        elif not close and spec.lower().endswith(".npz"):
            hint = f" For MedMNIST's layout, pass npz:{spec}."
        raise ConfigError(f"--dataset {spec!r} is not known; known are {', '.join(known_specs())}.{hint}")
    if name in NEED_PATH and not place:
        raise ConfigError(f"--dataset {spec!r} names no place; expected {name}:PATH.")
    if place is not None and (name in NO_PATH or not place):
        raise ConfigError(f"--dataset {spec!r} has an unexpected or empty path; expected {name!r}.")


def choices_of(spec: str) -> tuple[str, ...]:
    """Flags of the choices that a source has.

    Example:
        >>> choices_of("folder:pets"), choices_of("digits")
        (('--test-part',), ())
    """
    name = spec.partition(":")[0].strip().lower()
    return tuple(flag for flag, takers in TAKERS.items() if name in takers)


def _check_choices(name: str, choices: dict[str, str | None]) -> None:
    """Refuse a choice that the source does not have, which would be ignored otherwise."""
    for flag, value in choices.items():
        if value is not None and name not in TAKERS[flag]:
            names = f", since {name} has names of its own" if flag == "--class-names" else ""
            raise ConfigError(
                f"{flag} {value}: {name} has no such choice{names}; it is for {_listed(TAKERS[flag])}."
            )


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _resized(data: RealData, image_size: int) -> RealData:
    """Arrays that came in one fixed size, brought to the size that was asked for."""

    def resized(part: ImageSet) -> ImageSet:
        if part.images.shape[2:] == (image_size, image_size):
            return part
        return ImageSet.create(resize_images(part.images, image_size), part.labels, part.class_names)

    return data.with_images(resized(data.train), resized(data.test))
