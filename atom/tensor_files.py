"""Files that a directory passed from hand to hand is made of: tensors and a description, written and read with checks.

A distilled set and a delivered network are such directories. Nothing in them is unpickled or run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from atom.errors import ArtifactError
from atom.soundness import fail

M = TypeVar("M", bound=BaseModel)


def tensor_bytes(named: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """A safetensors file of the tensors, contiguous, on the CPU; the same content gives the same bytes.

    Args:
        named: tensors by name.
        header: JSON values, for those who meet this file alone.
    """
    from safetensors.torch import save

    # Clones: safetensors refuses tensors that share memory. One header entry: several come in random order.
    clean = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
    }
    return save(clean, metadata={"atom": json.dumps(header)})


def read_tensors(path: Path, *, again: str, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: of the file.
        again: what to do about a damaged one, for the message.
        sha256: of its content, where that is known.

    Raises:
        ArtifactError: it is something else, cut short, or has another content.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            fail(str(path), "another content", "the one that its description names by a digest", again)
        return load(content)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not a safetensors file, or is cut short ({error}); it was not opened any other way,"
            f" since pickles run code: {again}."
        ) from error


def read_description(path: Path, kind: type[M], *, version: int, what: str, again: str, newer: str) -> M:
    """The JSON file that describes the others.

    Args:
        path: of the file.
        kind: its fields.
        version: the `format_version` that can be read.
        what: is described, for the message.
        again, newer: what to do about a damaged one, and about one of another version.

    Raises:
        ArtifactError: it is not JSON, of another version, or a field is wrong.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ArtifactError(
            f"{path} is not JSON ({error}), expected the description of {what}; {again}."
        ) from error
    found = content.get("format_version") if isinstance(content, dict) else None
    if found != version:
        todo = f"install a newer version of this project, or {newer}"
        fail(str(path), f"format version {found!r}", f"{version}", todo)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path}: {name}: {first['msg']}, received {first['input']!r:.80}; {again}."
        ) from error


__all__ = ["read_description", "read_tensors", "tensor_bytes"]
