"""One set of images by every route: the same fingerprint, the same bits."""

import csv
import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atom.data import RealData, load

Put = Callable[[Path, str], str]
WNIDS = ("n01440764", "n02102040", "n03000684")
SIDE = 6


class Images:
    """Encoded images by part and class, each called as ImageNet calls its own, sorted by class and name."""

    def __init__(self, counts: Sequence[tuple[int, int]], *, formats: Sequence[str] = ("PNG",)) -> None:
        self.rows: dict[str, list[tuple[str, int, bytes]]] = {"train": [], "val": []}
        rng, number = np.random.default_rng(sum(map(sum, counts))), 0
        for label, both in enumerate(counts):
            for part, count in zip(self.rows, both, strict=True):
                for _ in range(count):
                    number += 1
                    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                    content = io.BytesIO()
                    Image.fromarray(pixels).save(content, formats[number % len(formats)])
                    self.rows[part].append((f"ILSVRC2012_val_{number:08d}", label, content.getvalue()))

    def folder(self, root: Path) -> str:
        for part, rows in self.rows.items():
            for name, label, content in rows:
                (root / part / WNIDS[label]).mkdir(parents=True, exist_ok=True)
                (root / part / WNIDS[label] / f"{name}.JPEG").write_bytes(content)
        return "folder"

    def imagenet(self, root: Path) -> str:
        """With validation images in one directory, and Kaggle's table."""
        self.folder(root)
        for file in (root / "val").rglob("*.JPEG"):
            file.rename(root / "val" / file.name)
        for wnid in WNIDS:
            (root / "val" / wnid).rmdir() if (root / "val" / wnid).is_dir() else None
        with (root / "LOC_val_solution.csv").open("w", newline="") as table:
            rows = [(name, f"{WNIDS[label]} 1 2 3 4") for name, label, _ in self.rows["val"]]
            csv.writer(table).writerows([("ImageId", "PredictionString"), *rows])
        return "imagenet"

    def webdataset(self, root: Path) -> str:
        """In two shards a part, every second image in each, the names of the classes beside them."""
        root.mkdir()
        (root / "classes.txt").write_text("\n".join(WNIDS))
        for part, rows in self.rows.items():
            for shard in range(2):
                with tarfile.open(root / f"{part}-{shard:06d}.tar", "w") as archive:
                    for name, label, content in rows[shard::2]:
                        for ending, data in (("jpg", content), ("cls", str(label).encode())):
                            header = tarfile.TarInfo(f"{name}.{ending}")
                            header.size = len(data)
                            archive.addfile(header, io.BytesIO(data))
        return "webdataset"

    def parquet(self, root: Path) -> str:
        root.mkdir()
        for part, rows in self.rows.items():
            columns = {
                "image": [{"bytes": content, "path": name} for name, _, content in rows],
                "label": [WNIDS[label] for _, label, _ in rows],
            }
            pq.write_table(pa.table(columns), root / f"{part}-00000-of-00001.parquet", row_group_size=3)
        return "parquet"

    def npz(self, root: Path) -> str:
        """Decoded, which a lossless format or one decoder makes the same images."""
        root.mkdir()
        arrays: dict[str, np.ndarray] = {}
        for part, called in (("train", "train"), ("val", "test")):
            pictures = [Image.open(io.BytesIO(content)) for _, _, content in self.rows[part]]
            arrays[f"{called}_images"] = np.stack([np.asarray(picture) for picture in pictures])
            arrays[f"{called}_labels"] = np.array([label for _, label, _ in self.rows[part]])
        np.savez(root / "set.npz", **arrays)
        return "npz"

    def expected(self, part: str) -> np.ndarray:
        pictures = [Image.open(io.BytesIO(content)).convert("RGB") for _, _, content in self.rows[part]]
        return np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)


ROUTES = ("folder", "imagenet", "webdataset", "parquet", "npz")


def read(kind: str, place: object, data_dir: Path, **asked: object) -> RealData:
    names = {"class_names": WNIDS} if kind == "npz" else {}
    return load(f"{kind}:{place}", data_dir=data_dir, **names, **asked)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=3, max_size=3))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_route_gives_the_same_bits(tmp_path: Path, counts: list[tuple[int, int]]) -> None:
    shutil.rmtree(tmp_path)
    images, found = Images(counts), {}
    for route in ROUTES:
        kind = getattr(images, route)(tmp_path / route)
        found[route] = read(kind, tmp_path / route, tmp_path / "data", keep_decoded=False)
    for data in found.values():
        np.testing.assert_array_equal(data.train.images, images.expected("train"))
        np.testing.assert_array_equal(data.test.images, images.expected("val"))
    assert len({(data.train.fingerprint, data.test.fingerprint) for data in found.values()}) == 1


@pytest.mark.parametrize("asked", [{}, {"image_size": 4}], ids=["as they are", "resized"])
@pytest.mark.parametrize("in_files", [False, True])
def test_every_route_on_a_disk_and_at_a_uri_has_one_fingerprint(
    tmp_path: Path, s3: Put, monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], *, in_files: bool
) -> None:
    if in_files:
        monkeypatch.setattr("atom.data.mapped.MAPPED_BYTES", 1)
    # Lossy ones too: all routes have one decoder.
    images, fingerprints = Images([(3, 2), (2, 1), (4, 2)], formats=("PNG", "JPEG", "WEBP")), set()
    for route in ROUTES[:4]:
        root = tmp_path / route
        kind = getattr(images, route)(root)
        for place in (root, root.as_uri(), s3(root, f"{tmp_path.name}/{route}")):
            data = read(kind, place, tmp_path / "data", **asked)
            fingerprints.add((data.train.fingerprint, data.test.fingerprint))
    assert len(fingerprints) == 1
