"""Reads the pickles CIFAR is published as, without running anything they contain.

A pickle names functions that the reader is to call. This reader knows the few names that a pickle of NumPy
arrays needs, answers each with a stand-in that only records its arguments, and refuses all others. NumPy
never sees the file's state; the array is made here, from its recorded bytes, after they were checked.
"""

import io
import pickle
from typing import Any

import numpy as np

from atom.data.image_set import Images


class _ArrayRecord:
    """Stands for a numpy.ndarray until its state has been checked."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _TypeRecord:
    """Stands for a numpy.dtype."""

    def __init__(self, code: str | bytes = "", *_flags: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Byte order and the like mean nothing for the single-byte type that is accepted."""


def _reconstruct(*_arguments: Any) -> _ArrayRecord:
    return _ArrayRecord()


def _frombuffer(content: Any, dtype: _TypeRecord, shape: Any, order: Any) -> _ArrayRecord:
    """How protocol 5 writes an array."""
    record = _ArrayRecord()
    record.state = (
        1,
        shape,
        dtype,
        order == "F",
        bytes(content) if isinstance(content, bytearray) else content,
    )
    return record


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into old pickle protocols; other codecs could inflate a bomb."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding!r} is not allowed")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): _ArrayRecord,
    ("numpy", "dtype"): _TypeRecord,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        """The stand-in for one of the allowed names."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def read_plain_pickle(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle of plain values and uint8 arrays.

    Raises:
        ValueError: the pickle is damaged, wants to call anything, or holds something else.
    """
    try:
        # latin1 is how Python 2 byte strings keep their bytes.
        loaded = _Reader(io.BytesIO(content), encoding="latin1").load()
    except MemoryError:
        raise ValueError("it asks for more memory than there is") from None
    except Exception as error:  # a damaged pickle can fail in any way: IndexError, AttributeError, EOFError …
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"it holds a {type(loaded).__name__}, not a dictionary")
    plain: dict[str, Any] = {}
    for key, value in loaded.items():
        name = key.decode("latin1") if isinstance(key, bytes) else str(key)
        plain[name] = _array(value) if isinstance(value, _ArrayRecord) else value
    return plain


def _array(record: _ArrayRecord) -> Images:
    """The array a record describes, if it is a uint8 array of the promised size."""
    if len(record.state) != 5:
        raise ValueError("an array has no state")
    _version, shape, dtype, fortran_order, raw = record.state
    content = raw.encode("latin1") if isinstance(raw, str) else raw
    whole = isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)
    if not isinstance(dtype, _TypeRecord) or dtype.code not in ("u1", "B", "uint8") or not whole:
        raise ValueError("an array is not uint8")
    if not isinstance(content, bytes) or len(content) != int(np.prod(shape, dtype=object)):
        raise ValueError(f"an array of shape {shape} does not have that many bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran_order else "C")
