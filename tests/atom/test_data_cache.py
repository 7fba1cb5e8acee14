import errno
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atom.data import load


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            Image.fromarray(np.full((4, 4), 50 * k, np.uint8)).save(tmp_path / "pets" / part / name / "0.png")
    return tmp_path / "pets"


def refuse_to_decode(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr("atom.data.parts.decode_all", fail)


def cache_entries(data_dir):
    return sorted(path.name for path in (data_dir / "cache").iterdir())


def test_second_load_comes_from_the_cache_and_is_equal(folder, tmp_path, monkeypatch):
    first = load(f"folder:{folder}", data_dir=tmp_path / "data")
    refuse_to_decode(monkeypatch)
    second = load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert second.train.fingerprint == first.train.fingerprint
    assert second.train.class_names == first.train.class_names
    np.testing.assert_array_equal(second.test.images, first.test.images)
    assert len(cache_entries(tmp_path / "data")) == 1


def test_changed_source_or_size_does_not_meet_an_old_cache_entry(folder, tmp_path):
    load(f"folder:{folder}", data_dir=tmp_path / "data")
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save(folder / "train" / "cat" / "1.png")
    assert len(load(f"folder:{folder}", data_dir=tmp_path / "data").train) == 3
    assert load(f"folder:{folder}", data_dir=tmp_path / "data", image_size=2).train.images.shape[2] == 2
    assert len(cache_entries(tmp_path / "data")) == 3


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_cache_entry_is_rebuilt(folder, tmp_path, caplog, name, damage):
    first = load(f"folder:{folder}", data_dir=tmp_path / "data")
    (entry,) = (tmp_path / "data" / "cache").iterdir()
    content = bytearray((entry / name).read_bytes())
    if damage == "remove":
        (entry / name).unlink()
    else:
        content[-2] ^= 0xFF
        (entry / name).write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with caplog.at_level(logging.INFO):
        again = load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert "rebuilding the damaged cache entry" in caplog.text
    assert again.train.fingerprint == first.train.fingerprint
    assert (entry / name).exists()


def test_pickle_in_place_of_a_cached_array_is_not_loaded(folder, tmp_path):
    load(f"folder:{folder}", data_dir=tmp_path / "data")
    (entry,) = (tmp_path / "data" / "cache").iterdir()
    np.save(entry / "train_images.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    assert load(f"folder:{folder}", data_dir=tmp_path / "data").train.images.dtype == np.uint8


def test_unwritable_cache_is_a_warning(folder, tmp_path, caplog):
    (tmp_path / "data").write_text("a file where the directory should be")
    data = load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert len(data.train) == 2
    assert "decoded images are not cached" in caplog.text


def test_an_entry_that_cannot_be_read_for_a_moment_is_left(folder, tmp_path, monkeypatch, caplog):
    """On a network disk, say; a run that has mapped it would lose its images."""
    first = load(f"folder:{folder}", data_dir=tmp_path / "data")
    (entry,) = (tmp_path / "data" / "cache").iterdir()
    before = (entry / "train_images.npy").stat()

    def away(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("atom.data.cache.opened", away)
        again = load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert again.train.fingerprint == first.train.fingerprint
    assert "cannot be read now" in caplog.text
    after = (entry / "train_images.npy").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    refuse_to_decode(monkeypatch)
    assert load(f"folder:{folder}", data_dir=tmp_path / "data").train.fingerprint == first.train.fingerprint


def test_an_empty_file_in_an_entry_is_damage(folder, tmp_path, caplog):
    load(f"folder:{folder}", data_dir=tmp_path / "data")
    (entry,) = (tmp_path / "data" / "cache").iterdir()
    (entry / "train_labels.npy").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert "rebuilding the damaged cache entry" in caplog.text


def test_drafts_of_killed_decodes_go_after_a_day(folder, tmp_path):
    cache = tmp_path / "data" / "cache"
    old, new, other = (
        cache / f".{name}" for name in (f"pets-{'0a' * 12}-x1", f"pets-{'0b' * 12}-x2", "mine-x3")
    )
    for draft in (old, new, other):
        draft.mkdir(parents=True)
        (draft / "train_images.npy").write_bytes(b"1")
    for draft in (old, other):
        os.utime(draft, (0, 0))
    load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_an_entry_that_another_process_wrote_meanwhile_is_no_failure(folder, tmp_path, monkeypatch, caplog):
    """Both decoded; whose rename comes second finds a directory that is not empty."""
    rename = Path.rename

    def second(draft, entry):
        shutil.copytree(draft, entry)
        return rename(draft, entry)

    monkeypatch.setattr(Path, "rename", second)
    load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert "not cached" not in caplog.text
    refuse_to_decode(monkeypatch)
    load(f"folder:{folder}", data_dir=tmp_path / "data")
    assert len(cache_entries(tmp_path / "data")) == 1
