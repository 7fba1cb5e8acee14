"""Labelled images without official parts, as they come month after month: one directory a class, or a source's own."""

# N images

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from atom.data.class_folders import TRAIN_FOLDERS, class_folders, entries_of, visible
from atom.data.decode import Decode, OnDecoded, decode_all
from atom.data.download import OnDownload
from atom.data.image_set import ImageSet
from atom.data.mapped import taken
from atom.data.place import Place, place_of
from atom.data.request import Request, required_directory
from atom.data.sources import OWN, decoded_folder, load
from atom.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with labels, and what a user should know of how they were read.

    Attributes:
        images: of the training part, where the source has parts.
        test: of the test part, where it has one.
        remarks: one sentence each, without a full stop.
        folder: where many of them lie in a file, see `atom.data.mapped.empty`; None: in memory.
    """

    images: ImageSet
    test: ImageSet | None = None
    remarks: tuple[str, ...] = ()
    folder: Path | None = None

    def only(self, classes: tuple[str, ...]) -> "Labelled":
        """The same with these classes alone.

        Raises:
            ConfigError: there is no such class.
        """
        test = None if self.test is None else _only(self.test, classes, self.folder)
        return replace(self, images=_only(self.images, classes, self.folder), test=test)


def load_labelled(
    spec: str,
    *,
    data_dir: Path,
    image_size: int | None = None,
    allow_download: bool = True,
    skip_broken: bool = False,
    on_download: OnDownload | None = None,
    on_decoded: OnDecoded | None = None,
    decode_elsewhere: Decode | None = None,
) -> Labelled:
    """Labelled images of a source.

    `folder:PATH` may hold the class directories themselves, PATH/<class>/*, or a directory train/ of them; a directory
    train/ of images is a class. A user's own images are decoded anew each time: nothing of them is left in a cache.

    Args:
        spec, data_dir, image_size, allow_download, skip_broken: see `atom.data.load`.
        on_download, on_decoded, decode_elsewhere: see there.

    Raises:
        ConfigError, DataError: see there; a class without an image.
    """
    name, _, place = spec.partition(":")
    name = name.strip().lower()
    root = place_of(place, spec=spec) if name == "folder" and place else None
    if root is not None and not _has_parts(root):
        request = Request(
            spec,
            "folder",
            root,
            data_dir,
            image_size,
            allow_download=False,
            skip_broken=skip_broken,
            on_decoded=on_decoded,
            decode_elsewhere=decode_elsewhere,
            keep_decoded=False,
        )
        return _read_classes(request, root)
    own = name in OWN
    real = load(
        spec,
        data_dir=data_dir,
        image_size=image_size,
        allow_download=allow_download,
        skip_broken=skip_broken,
        on_download=on_download,
        on_decoded=on_decoded,
        decode_elsewhere=decode_elsewhere,
        keep_decoded=not own,
    )
    return Labelled(real.train, real.test, real.remarks, None if own else decoded_folder(spec, data_dir))


def _has_parts(root: Place) -> bool:
    # A class may be called train: its directory holds images.
    return root.is_dir() and any(
        path.is_dir()
        and path.name.lower() in TRAIN_FOLDERS
        and any(inner.is_dir() for inner in visible(path))
        for path in visible(root)
    )


def _read_classes(request: Request, root: Place) -> Labelled:
    required_directory(request)
    skipped: list[str] = []
    classes = class_folders(request, root, skipped)
    names = tuple(sorted(classes))
    entries = entries_of(classes, root, names, needed="every class needs images")
    decoded = decode_all(entries, request.decoding, num_entries=len(entries))
    images = ImageSet.create(decoded.images, decoded.labels, names)
    for class_id, count in enumerate(images.per_class_counts()):
        if not count:
            raise DataError(
                f"{root / names[class_id]}: none of its files is an image that can be read; put images there, or"
                " remove the directory."
            )
    left_out = (f"{len(skipped) + len(decoded.skipped)} files were left out as no images",)
    return Labelled(images, remarks=(*decoded.remarks, *(left_out if skipped or decoded.skipped else ())))


def _only(images: ImageSet, classes: tuple[str, ...], folder: Path | None) -> ImageSet:
    unknown = [name for name in classes if name not in images.class_names]
    if unknown:
        raise ConfigError(
            f"--classes {unknown[0]!r}: not among the classes of the images, {', '.join(images.class_names)[:300]}."
        )
    kept = [images.class_names.index(name) for name in classes]
    rows = np.flatnonzero(np.isin(images.labels, kept))
    labels = np.array([kept.index(label) for label in images.labels[rows]], dtype=np.int64)
    return ImageSet.create(taken(images.images, rows, folder), labels, classes)
