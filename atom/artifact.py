"""The directory a distilled set lives in: names, contents, writing and checked reading.

docs/artifact.md describes the format. `distilled.safetensors`, `set.json` and `preprocess.safetensors` are
the set; the card, the parquet file and the picture are views for people and other tools, never read back.
"""

# N stored images, M decoded images, C channels, H height, W width, K classes

import json
import re
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from atom import atomic
from atom.errors import ArtifactError
from atom.preprocess import Preprocess
from atom.set_values import SetValues
from atom.soundness import AGAIN, check_finite, check_set, fail
from atom.tensor_files import read_description, read_tensors, tensor_bytes

FORMAT_VERSION = 1
TENSORS, MANIFEST, PREPROCESS = "distilled.safetensors", "set.json", "preprocess.safetensors"
CARD, PARQUET = "README.md", "data/train-00000-of-00001.parquet"
SHEET, STRETCHED_SHEET = "sheet.png", "sheet-stretched.png"
CORE_FILES = (TENSORS, MANIFEST, PREPROCESS)
"""What makes a set; the others are views."""
FILES = (*CORE_FILES, CARD, PARQUET, SHEET, STRETCHED_SHEET)
"""All but the last are always there; see `atom.sheet.needs_stretching`."""

SET_NAME = "set"
"""Directory of the set in the output of a run."""

_PREPROCESS_NDIM = {"mean": 1, "std": 1, "zca_mean": 1, "zca_whiten": 2, "zca_unwhiten": 2}


class Manifest(BaseModel):
    """`set.json`, everything about a set that is not a tensor."""

    model_config = ConfigDict(strict=True, extra="ignore")

    format_version: int
    method: Annotated[str, Field(min_length=1)]
    ipc: Annotated[int, Field(ge=1)]
    factor: Annotated[int, Field(ge=1)]
    class_names: Annotated[list[str], Field(min_length=1)]
    images_shape: Annotated[list[int], Field(min_length=4, max_length=4)]
    soft_labels: bool = False
    preprocess: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    source: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    git_commit: str | None = None
    earlier_programs: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    training: dict[str, Any] = {}
    about: dict[str, str] = {}
    audit: dict[str, Any] = {}


def write_set(distilled: SetValues, directory: Path) -> Path:
    """Write the directory as a whole or not at all; see `DistilledSet.save`."""
    from atom.card import write_card
    from atom.parquet import parquet_bytes
    from atom.sheet import draw, needs_stretching, png_bytes

    check_set(distilled, "the distilled set")
    files = {
        TENSORS: tensor_bytes(_set_tensors(distilled), _headline(distilled)),
        MANIFEST: (
            json.dumps(_manifest(distilled).model_dump(), indent=2, ensure_ascii=False) + "\n"
        ).encode(),
        PREPROCESS: tensor_bytes(distilled.preprocess.tensors(), {"format_version": FORMAT_VERSION}),
        CARD: write_card(distilled).encode(),
        PARQUET: parquet_bytes(distilled),
        SHEET: png_bytes(draw(distilled)),
    }
    if needs_stretching(distilled):
        files[STRETCHED_SHEET] = png_bytes(draw(distilled, stretched=True))
    directory = directory.expanduser().absolute()
    atomic.write_directory(directory, files, owns=FILES.__contains__)
    return directory


def read_set(path: str | Path) -> SetValues:
    """Read and check a directory; see `DistilledSet.load`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ArtifactError(
            f"{path} is a URI, but DistilledSet.load opens local directories; pass it to atom-evaluate, or"
            " fetch it first with pipelines.tracking.fetch_artifact and load the path that returns."
        )
    directory = Path(path).expanduser()
    if not (directory / MANIFEST).exists() and (directory / SET_NAME / MANIFEST).is_file():
        directory /= SET_NAME
    _check_files(directory)
    manifest = read_description(
        directory / MANIFEST,
        Manifest,
        version=FORMAT_VERSION,
        what="the set",
        again=AGAIN,
        newer="distil the set again",
    )
    tensors = read_tensors(directory / TENSORS, again=AGAIN)
    expected = {"images", "labels"} | ({"soft_labels"} if manifest.soft_labels else set())
    if set(tensors) != expected:
        fail(str(directory / TENSORS), f"tensors {sorted(tensors)}", str(sorted(expected)))
    if list(tensors["images"].shape) != manifest.images_shape:
        fail(
            str(directory / TENSORS),
            f"images of shape {list(tensors['images'].shape)}",
            f"{manifest.images_shape} as {MANIFEST} says",
        )
    distilled = SetValues(
        images_NCHW=tensors["images"],
        labels=tensors["labels"],
        soft_labels=tensors.get("soft_labels"),
        class_names=tuple(manifest.class_names),
        preprocess=_read_preprocess(directory / PREPROCESS),
        **manifest.model_dump(include={"ipc", "factor", "method", "settings", "source", "versions"}),
        git_commit=manifest.git_commit,
        earlier_programs=manifest.earlier_programs,
        results=manifest.results,
        training=manifest.training,
        about=manifest.about,
        audit=manifest.audit,
    )
    check_set(distilled, str(directory))
    return distilled


def _headline(distilled: SetValues) -> dict[str, Any]:
    """What the header of the tensor file says, for those who meet that file alone."""
    return {
        "format_version": FORMAT_VERSION,
        "method": distilled.method,
        "ipc": distilled.ipc,
        "factor": distilled.factor,
        "class_names": distilled.class_names,
    }


def _set_tensors(distilled: SetValues) -> dict[str, Tensor]:
    named = {"images": distilled.images_NCHW, "labels": distilled.labels}
    return named if distilled.soft_labels is None else named | {"soft_labels": distilled.soft_labels}


def _manifest(distilled: SetValues) -> Manifest:
    preprocess = distilled.preprocess
    return Manifest(
        format_version=FORMAT_VERSION,
        method=distilled.method,
        ipc=distilled.ipc,
        factor=distilled.factor,
        class_names=list(distilled.class_names),
        images_shape=list(distilled.images_NCHW.shape),
        soft_labels=distilled.soft_labels is not None,
        preprocess={
            "mean": preprocess.mean_C.tolist(),
            "std": preprocess.std_C.tolist(),
            "zca": preprocess.zca is not None,
        },
        settings=dict(distilled.settings),
        source=dict(distilled.source),
        versions=dict(distilled.versions),
        git_commit=distilled.git_commit,
        earlier_programs=[dict(one) for one in distilled.earlier_programs],
        results=[dict(row) for row in distilled.results],
        training=dict(distilled.training),
        about=dict(distilled.about),
        audit=dict(distilled.audit),
    )


def _check_files(directory: Path) -> None:
    if not directory.exists():
        old = atomic.interrupted(directory.absolute())
        hint = (
            "check the path"
            if old is None
            else f"a save was interrupted here, its previous set lies in {old}"
        )
        raise ArtifactError(f"{directory} does not exist, expected the directory of a distilled set; {hint}.")
    if not directory.is_dir():
        hint = "pass its directory"
        if directory.suffix in (".pt", ".pth"):
            hint = "atom.exports.import_dc_pt reads those of other projects, and save(DIRECTORY) of its set writes one"
        raise ArtifactError(f"{directory} is a file, expected the directory of a distilled set; {hint}.")
    for name in CORE_FILES:
        if not (directory / name).is_file():
            raise ArtifactError(
                f"{directory}: {name} is missing, expected {TENSORS}, {MANIFEST} and {PREPROCESS}; {AGAIN}."
            )


def _read_preprocess(path: Path) -> Preprocess:
    named = read_tensors(path, again=AGAIN)
    for name, tensor in named.items():
        if tensor.dtype != torch.float32 or tensor.ndim != _PREPROCESS_NDIM.get(name, tensor.ndim):
            shape = f"{_PREPROCESS_NDIM.get(name, tensor.ndim)} dimension(s)"
            fail(str(path), f"{name} is {tensor.dtype} {list(tensor.shape)}", f"torch.float32 of {shape}")
        check_finite(tensor, name, str(path))
    try:
        return Preprocess.from_tensors(named)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
