"""A copy that differs from a well-known set does not pass for it; the published files do."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_data_cifar import cifar_batch, dump
from test_data_idx_svhn import write_idx, write_svhn

from atom.data import ImageSet, RealData, SourceInfo, load, official
from atom.data.official import Part, compared, difference, is_official

FASHION = Path("/usr/share/datasets/fashion-mnist")
OWN = SourceInfo("Petals", "Somebody, 1999.", "CC0", "https://example.org")


def petals():
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 5), dtype=np.uint8)
    return ImageSet.create(images, [0, 1, 2, 2, 0, 1], ["a", "b", "c"])


def known(images):
    return Part(
        tuple(images.per_class_counts().tolist()),
        tuple(int(total) for total in images.images.sum(axis=(0, 2, 3))),
        hashlib.sha256(images.labels.astype(np.uint8).tobytes()).hexdigest(),
    )


def test_the_very_images_keep_title_and_terms():
    both = known(petals()), known(petals())
    assert difference(petals(), petals(), both) == ""
    assert compared(RealData("x", "x", petals(), petals(), OWN), both).source == OWN


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda real: real.subset(range(5)), "5 training images instead of 6"),
        (lambda real: real.subset([0, 1, 2, 2, 0, 2]), "other numbers of training images a class"),
        (
            lambda real: real.subset([1, 0, 2, 3, 4, 5]),
            "other labels of the training images, or another order",
        ),
        (
            lambda real: ImageSet.create(np.clip(real.images, 10, 250), real.labels, real.class_names),
            "other pixels in the training images",
        ),
    ],
)
def test_what_differs_stands_in_title_and_remark_and_no_terms_are_claimed(change, what):
    data = RealData("x", "x", change(petals()), petals(), OWN)
    found = compared(data, (known(petals()), known(petals())))
    assert found.source.title == f"Petals (not the official files: {what})"
    assert "CC0" not in found.source.licence
    assert found.source.licence.startswith("Unknown")
    assert [what in remark for remark in found.remarks] == [True]


def test_a_copy_in_another_layout_and_order_is_the_set_and_whatever_bears_its_name_is_not(monkeypatch):
    monkeypatch.setitem(official.COPIED, "petals", ((3, 5, 5), (known(petals()), known(petals()))))
    shuffled, nobodys = petals().subset([5, 4, 3, 2, 1, 0]), SourceInfo("petals (parquet)", "", "Unknown", "")
    assert is_official(RealData("petals", "parquet:/x/petals", shuffled, petals(), nobodys))
    for spec, name, train in (
        ("folder:/x/petals", "petals", petals().subset([0, 1, 2, 2, 0, 2])),
        ("folder:/x/flowers", "flowers", petals()),
        ("petals", "petals", petals()),
    ):
        assert not is_official(RealData(name, spec, train, petals(), nobodys))
    assert is_official(RealData("petals", "petals", petals(), petals(), OWN))


def test_a_subset_of_cifar10_does_not_pass_for_it_and_the_cache_remembers(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        dump(folder / f"data_batch_{number}", cifar_batch(200, num_classes=10, seed=number))
    dump(folder / "test_batch", cifar_batch(10, num_classes=10, seed=6))
    dump(folder / "batches.meta", {"label_names": [f"name{k}" for k in range(10)]})
    first, again = (load("cifar10", data_dir=tmp_path) for _ in range(2))
    assert first.source.title == "CIFAR-10 (not the official files: 1,000 training images instead of 50,000)"
    assert again.source == first.source
    assert not is_official(again)
    assert again.remarks == first.remarks
    assert "published numbers" in again.remarks[0]


def test_ten_classes_of_anything_in_idx_files_are_not_mnist(tmp_path):
    write_idx(tmp_path)
    source = load("mnist", data_dir=tmp_path).source
    assert source.title == "MNIST (not the official files: 20 training images instead of 60,000)"
    assert "CC BY-SA" not in source.licence


def test_few_svhn_digits_are_not_svhn(tmp_path):
    write_svhn(tmp_path)
    assert "10 training images instead of 73,257" in load("svhn", data_dir=tmp_path).source.title


def test_what_is_known_of_the_sets_adds_up():
    totals = {
        name: tuple(sum(part.counts) for part in getattr(official, name))
        for name in ("CIFAR10", "CIFAR100", "MNIST", "FASHIONMNIST", "SVHN", "TINYIMAGENET")
    }
    assert totals == {
        "CIFAR10": (50_000, 10_000),
        "CIFAR100": (50_000, 10_000),
        "MNIST": (60_000, 10_000),
        "FASHIONMNIST": (60_000, 10_000),
        "SVHN": (73_257, 26_032),
        "TINYIMAGENET": (100_000, 10_000),
    }


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="the official files are not on this machine")
def test_official_files_are_recognised_however_they_are_packed_and_one_pixel_tells(tmp_path):
    data = load(f"fashionmnist:{FASHION}", data_dir=tmp_path)
    assert (data.source.title, data.remarks) == ("Fashion-MNIST", ())
    for file in FASHION.glob("*.gz"):
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    assert load(f"fashionmnist:{tmp_path}", data_dir=tmp_path).source.title == "Fashion-MNIST"
    content = bytearray((tmp_path / "train-images-idx3-ubyte").read_bytes())
    content[-1] ^= 1
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    changed = load(f"fashionmnist:{tmp_path}", data_dir=tmp_path)
    assert changed.source.title == "Fashion-MNIST (not the official files: other bytes)"


def names_digest(names):
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def test_cifar10_with_its_class_names_in_another_order_does_not_pass_for_it(tmp_path, monkeypatch):
    from atom.data import cifar

    folder = tmp_path / "cifar-10-batches-py"
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        dump(folder / name, cifar_batch(10, num_classes=10, seed=1))
    dump(folder / "batches.meta", {"label_names": names})
    data = load("cifar10", data_dir=tmp_path)
    md5s = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.glob("*_batch*")}
    source = replace(cifar.SOURCES["cifar10"], md5s=md5s, official=(known(data.train), known(data.test)))
    monkeypatch.setitem(cifar.SOURCES, "cifar10", source)
    assert load(f"cifar10:{folder}", data_dir=tmp_path / "one").source.title == "CIFAR-10"
    dump(folder / "batches.meta", {"label_names": names[::-1]})
    title = load(f"cifar10:{folder}", data_dir=tmp_path / "two").source.title
    assert title == "CIFAR-10 (not the official files: other class names, or another order of them)"


def test_labels_of_cifar100_in_another_container_are_said_to_be_unchecked(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    for part in ("train", "test"):
        dump(folder / part, cifar_batch(100, num_classes=100, seed=1, label="fine_labels"))
    dump(folder / "meta", {"fine_label_names": [f"name{k}" for k in range(100)]})
    from atom.data import cifar

    part = load("cifar100", data_dir=tmp_path).train
    same = replace(known(part), labels="")
    source = replace(
        cifar.SOURCES["cifar100"], official=(same, same), names_sha256=names_digest(part.class_names)
    )
    monkeypatch.setitem(cifar.SOURCES, "cifar100", source)
    data = load("cifar100", data_dir=tmp_path / "cifar-100-python")
    assert data.source.title == "CIFAR-100"
    assert "could be checked" in data.remarks[0]
