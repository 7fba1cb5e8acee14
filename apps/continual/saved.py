"""A memory as bytes, for the checkpoint of a step: one safetensors file, nothing pickled."""

# N stored images

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.continual import lossless
from apps.continual.exemplars import Exemplars
from atom.errors import ArtifactError, ShapeError

FORMAT_VERSIONS = {"memory": 1, "reservoir": 2, "buffer": 1}
"""By kind; another one is refused."""

_HEADER_FIELDS = {
    "memory": (),
    "reservoir": ("capacity", "seed", "compress", "max_bytes", "end"),
    "buffer": ("num_experiences", "tasks", "labels_are_tensors", "preprocess"),
}
_OPTIONAL_FIELDS = {"buffer": ("options",)}
"""Those that files of before do not have; None there."""


@dataclass(frozen=True, eq=False)
class Saved:
    """What `unpack` finds."""

    header: dict[str, Any]
    exemplars: dict[int, Exemplars]
    keys: dict[int, np.ndarray]
    """A number of each image by class, float64 [N]: random ones of a reservoir, of a buffer how much an image counts
    where that is known."""


def pack(
    kind: str,
    exemplars: Mapping[int, Exemplars],
    *,
    keys: Mapping[int, np.ndarray] | None = None,
    **header: Any,
) -> bytes:
    """Exemplars by class, a reservoir's keys and numbers; the same content gives the same bytes.

    Args:
        kind: "memory", "reservoir" or "buffer".
        exemplars: in any order.
        keys: see `Saved`.
        header: of a reservoir, what makes it; of a buffer, what its `SavedBuffer` holds beside images.
    """
    from safetensors.numpy import save

    arrays = {f"keys/{class_id}": keys_N for class_id, keys_N in (keys or {}).items()}
    factors = {}
    for class_id in sorted(exemplars):
        kept = exemplars[class_id]
        if kept.files is None:
            arrays[f"images/{class_id}"] = kept.images_NCHW
        else:
            arrays[f"files/{class_id}"] = np.frombuffer(b"".join(kept.files), np.uint8)
            arrays[f"lengths/{class_id}"] = np.array([len(file) for file in kept.files], np.int64)
            arrays[f"shape/{class_id}"] = np.array(kept.images_NCHW.shape[1:], np.int64)
        factors[class_id] = kept.factor
        if kept.ranges_N2 is not None:
            arrays[f"ranges/{class_id}"] = kept.ranges_N2
        if kept.soft_NK is not None:
            arrays[f"soft/{class_id}"] = kept.soft_NK
    content = {"format_version": FORMAT_VERSIONS[kind], "kind": kind, "factors": factors, **header}
    # Contiguous: safetensors ignores strides. One header entry: several come in random order.
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(packed, metadata={"atom": json.dumps(content)})


def unpack(data: bytes, kind: str) -> Saved:
    """The inverse of `pack`.

    Raises:
        ArtifactError: the bytes are damaged, or of another kind or version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["atom"])
        if (header["format_version"], header["kind"]) != (FORMAT_VERSIONS[kind], kind):
            raise ValueError(f"it is a {header['kind']} of version {header['format_version']}")
        fields = _HEADER_FIELDS[kind]
        exemplars = {
            int(name): Exemplars(
                images, factor, arrays.get(f"ranges/{name}"), files, arrays.get(f"soft/{name}")
            )
            for name, factor in header["factors"].items()
            for images, files in [_images(arrays, name)]
        }
        keyed = [c for c in exemplars if kind == "reservoir" or f"keys/{c}" in arrays]
        keys = {class_id: arrays[f"keys/{class_id}"] for class_id in keyed}
        optional = {name: header.get(name) for name in _OPTIONAL_FIELDS.get(kind, ())}
        return Saved({name: header[name] for name in fields} | optional, exemplars, keys)
    except (SafetensorError, ShapeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"saved memory: expected a {kind} of version {FORMAT_VERSIONS[kind]}, but reading it failed ({error});"
            " remove the checkpoint of that step to have it made again."
        ) from error


def _images(arrays: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, tuple[bytes, ...] | None]:
    """The images of a class, and the files they were stored in, if any."""
    if f"images/{name}" in arrays:
        return arrays[f"images/{name}"], None
    joined, ends_N = arrays[f"files/{name}"].tobytes(), np.cumsum(arrays[f"lengths/{name}"])
    channels, height, width = arrays[f"shape/{name}"].tolist()
    files = tuple(
        joined[end - size : end] for size, end in zip(arrays[f"lengths/{name}"], ends_N, strict=True)
    )
    images_NCHW = np.empty((len(files), channels, height, width), np.uint8)
    for row, file in enumerate(files):
        images_NCHW[row] = lossless.decode(file, (channels, height, width))
    return images_NCHW, files


__all__ = ["Saved", "pack", "unpack"]
