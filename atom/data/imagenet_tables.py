"""Tables beside ImageNet's images: what its classes are called, and which class a validation image is of."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from atom.data.place import Place
from atom.errors import DataError

NAMES_FILE = "LOC_synset_mapping.txt"
SOLUTION_FILE = "LOC_val_solution.csv"
TRUTH_FILE, META_FILE = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKITS = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data")
"""Where the development kit has its tables, within the folder of the set."""

_WNID = re.compile(r"n\d{8}")


def is_wnid(name: str) -> bool:
    """Whether a directory is called as WordNet's nouns are, n and eight digits."""
    return bool(_WNID.fullmatch(name))


def first_names(words: Mapping[str, str], wnids: Sequence[str]) -> tuple[str, ...]:
    """First of the names of every class; where two classes share it, the identifier is added.

    Args:
        words: names by identifier, with commas between them; those that have none keep the identifier.
        wnids: of the classes, in the order of the labels.

    >>> first_names({"n02012849": "crane", "n03126707": "crane, derrick"}, ["n02012849", "n03126707", "n1"])
    ('crane (n02012849)', 'crane (n03126707)', 'n1')
    """
    first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    shared = Counter(first)
    return tuple(
        name if shared[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(first, wnids, strict=True)
    )


class Tables:
    """The tables that lie in some folders; what was read is noted in `files`.

    Args:
        folders: where they are looked for, the first that has one counts.
    """

    def __init__(self, folders: Iterable[Place]) -> None:
        self.folders = list(dict.fromkeys(folders))
        self.files: list[Place] = []

    def words(self) -> dict[str, str]:
        """Names by identifier: Kaggle's, else the development kit's, else none.

        Raises:
            DataError: the table is damaged.
        """
        if (file := self._found(NAMES_FILE)) is not None:
            return dict(_pair(file, number, line, " ") for number, line in _lines(file))
        if (file := self._found(META_FILE)) is not None:
            return {wnid: words for wnid, words in _synsets(file).values()}
        return {}

    def classes_of_validation(self) -> dict[str, str] | None:
        """Identifier of the class by the stem of the image's name: Kaggle's, else the development kit's, else None.

        Raises:
            DataError: a table is damaged.
        """
        if (file := self._found(SOLUTION_FILE)) is not None:
            rows = [_pair(file, number, line, ",") for number, line in _lines(file)[1:]]
            return {stem: told.split()[0] for stem, told in rows}
        truth, meta = self._found(TRUTH_FILE), self._found(META_FILE)
        if truth is None or meta is None:
            return None
        synsets = _synsets(meta)
        found: dict[str, str] = {}
        for number, line in _lines(truth):
            if not line.isdigit() or int(line) not in synsets:
                raise DataError(
                    f"{truth}, line {number}: {line[:40]!r} is no class of {meta}; fetch both again."
                )
            found[f"ILSVRC2012_val_{number:08d}"] = synsets[int(line)][0]
        return found

    def _found(self, name: str) -> Place | None:
        file = next((folder / name for folder in self.folders if (folder / name).is_file()), None)
        if file is not None:
            self.files.append(file)
        return file


def _lines(file: Place) -> list[tuple[int, str]]:
    """Numbers, from 1, and lines of a table, those that are empty left out."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); fetch the file again.") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _pair(file: Place, number: int, line: str, separator: str) -> tuple[str, str]:
    first, _, rest = line.partition(separator)
    if not rest.strip():
        raise DataError(
            f"{file}, line {number}: {line[:40]!r} is not what ImageNet has there; fetch it again."
        )
    return first.strip(), rest.strip()


def _synsets(file: Place) -> dict[int, tuple[str, str]]:
    """Identifier and names of every class by its number, from 1 to 1000; WordNet's inner nodes have higher ones."""
    from scipy.io import loadmat  # half a second of import time, needed by this table only

    try:
        synsets = loadmat(io.BytesIO(file.read_bytes()), variable_names=["synsets"], squeeze_me=True)[
            "synsets"
        ]
        rows = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in synsets.ravel()]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # the reader lets zlib.error, KeyError, TypeError and others through
        raise DataError(
            f"{file}: not the development kit's table of classes ({error}); fetch it again."
        ) from error
    return {number: (wnid, words) for number, wnid, words in rows}


__all__ = [
    "DEVKITS",
    "META_FILE",
    "NAMES_FILE",
    "SOLUTION_FILE",
    "TRUTH_FILE",
    "Tables",
    "first_names",
    "is_wnid",
]
