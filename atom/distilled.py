"""DistilledSet: a tiny synthetic image set with everything needed to use it on real data.

The images are kept as they were optimised, that is in the space of their preprocessing. The usual mistake
with published sets is to train on whitened images and test on raw ones; here the set carries the transform.

In layers, each knowing those before it: `set_values`, `soundness` (checks), `sheet`, `parquet`, `hub` and `card`
(views), `artifact` (the directory), and this one.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from atom.set_values import DistilledDataset, SetValues, describe_source, plain, without_folders
from atom.soundness import check_set

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class DistilledSet(SetValues):
    """A distilled set that can be read and written; its attributes are those of `SetValues`."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The set in a directory written by `save`, or in `set/` of a run's output, checked; nothing in it is ever
        unpickled or run.

        Raises:
            ArtifactError: a file is missing, damaged, of another version or not what it should be; the
                message names the file, what was found, what was expected and what to do.
        """
        from atom.artifact import read_set

        values = read_set(path)
        return cls(**{field.name: getattr(values, field.name) for field in fields(values)})

    def save(self, directory: str | Path) -> Path:
        """Write the set as a directory, replacing an older set there in one step; returns the absolute path.

        The same set gives the same bytes. An output that cannot be finished leaves what was there before.

        Raises:
            ArtifactError: the set does not pass `validate`.
            StoreError: the disk is full or read-only, or the directory holds something other than a set.
        """
        from atom.artifact import write_set

        return write_set(self, Path(directory))

    def validate(self, where: str = "the distilled set") -> None:
        """Check shapes, types, label order, class names and that every value is finite.

        Raises:
            ArtifactError: one sentence on the first thing that is wrong, beginning with `where`.
        """
        check_set(self, where)

    def sheet(self, *, stretched: bool = False) -> "Image":
        """All classes in one picture, see `atom.sheet.draw`."""
        from atom.sheet import draw

        return draw(self, stretched=stretched)


__all__ = ["DistilledDataset", "DistilledSet", "describe_source", "plain", "without_folders"]
