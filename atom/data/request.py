"""What a reader of one source is asked for, and the lookups all readers share."""

import re
from dataclasses import dataclass
from pathlib import Path

from atom.data.decode import Decode, Decoding, OnDecoded
from atom.data.download import OnDownload
from atom.data.place import Place, Remote
from atom.errors import DataError


@dataclass(frozen=True)
class Request:
    """One call of `load`, with its spec taken apart."""

    spec: str
    """As the user wrote it, for messages."""
    name: str
    """The part before the colon."""
    path: Place | None
    """The part after the colon, or the directory in it that a pattern is below."""
    data_dir: Path
    image_size: int | None
    allow_download: bool
    skip_broken: bool
    image_column: str | None = None
    label_column: str | None = None
    test_part: str | None = None
    class_names: tuple[str, ...] | None = None
    on_download: OnDownload | None = None
    on_decoded: OnDecoded | None = None
    decode_elsewhere: Decode | None = None
    pattern: str = ""
    """What names files below the path, with * or braces; "": the path names all."""
    keep_decoded: bool = True
    """Whether the decoded images may stay in the cache, for the next run to begin at once."""

    @property
    def may_download(self) -> bool:
        """Whether missing files may be fetched: never into a place the user named in the spec."""
        return self.allow_download and self.path is None

    @property
    def place(self) -> Place:
        """Where the files are looked for."""
        return self.path or self.data_dir

    @property
    def root(self) -> Path:
        """The same, of sources that are read from local disks only."""
        assert not isinstance(self.place, Remote), "refused when the spec was taken apart"
        return self.place

    @property
    def decoding(self) -> Decoding:
        """How images are decoded, as far as the user decides it."""
        folder = cache_folder(self.data_dir) if self.keep_decoded else None
        return Decoding(
            image_size=self.image_size,
            skip_broken=self.skip_broken,
            folder=folder,
            far=isinstance(self.path, Remote),
            elsewhere=self.decode_elsewhere,
            on_decoded=self.on_decoded,
        )

    @property
    def options(self) -> dict[str, object]:
        """What, besides the files, decides the decoded arrays."""
        return {
            "source": self.name,
            "image_size": self.image_size,
            "skip_broken": self.skip_broken,
            "image_column": self.image_column,
            "label_column": self.label_column,
            "test_part": self.test_part,
        }


def cache_folder(data_dir: Path) -> Path:
    """Where decoded images are kept."""
    return data_dir / "cache"


def required_directory(request: Request) -> Place:
    """The directory named in the spec.

    Raises:
        DataError: it does not exist, or is a file.
    """
    root = request.place
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{request.spec}: {root} {what}; expected a directory with the image set.")
    return root


def slug(path: Place) -> str:
    """Lower-case name of a directory, safe in names of runs and files."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", path.resolve().name.lower()).strip("-")
    return cleaned or "images"
