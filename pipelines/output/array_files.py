"""Named arrays with what is said of them, as the bytes of a safetensors file that notices any damage."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save


def pack(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> bytes:
    """A file's content; `about` goes into its metadata, with a digest of everything."""
    # Not ascontiguousarray, which makes vectors of single numbers.
    plain = {key: np.asarray(value, order="C") for key, value in arrays.items()}
    return save(plain, {**about, "digest": _digest(plain, about)})


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file's content, and what is said of them.

    Raises:
        ValueError: it is no safetensors file, or damaged.
    """
    try:
        arrays, about = load(data), metadata(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error
    if about.pop("digest", "") != _digest(arrays, about):
        raise ValueError("its content does not fit its digest")
    return arrays, about


def metadata(data: bytes) -> dict[str, str]:
    """What is said in a file's content, or in its start of `header_bytes`, unchecked: an 8-byte length, then JSON.

    Raises:
        ValueError: there is no JSON.
    """
    header = json.loads(data[8 : header_bytes(data)])
    return header.get("__metadata__", {}) if isinstance(header, dict) else {}


def header_bytes(data: bytes) -> int:
    """How many bytes of a file come before its arrays, by its first 8.

    Raises:
        ValueError: more than any of our files has, so it is none.
    """
    length = int.from_bytes(data[:8], "little")
    if length > _MOST_HEADER:
        raise ValueError(f"its header would have {length} bytes")
    return 8 + length


_MOST_HEADER = 100_000_000
"""As safetensors itself allows."""


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> str:
    """Checksum of a file's content: safetensors itself notices a short file, not a flipped or zeroed byte."""
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        digest.update(arrays[key].tobytes())
    return digest.hexdigest()
