import os
import resource
import shutil
import time
from contextlib import contextmanager

import pytest
import torch
from distilled_samples import make_set

from atom import atomic
from atom.distilled import DistilledSet
from atom.errors import ArtifactError, StoreError


def read_all(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@contextmanager
def no_space():
    """Refuse files above 2000 bytes, as a full disk would: the write raises OSError in the middle.

    Only around the save itself: the limit holds for the whole process, pytest's own log included.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_replacing_a_set_leaves_only_the_new_one(tmp_path):
    make_set(ipc=3).save(tmp_path / "set")
    make_set(ipc=1).save(tmp_path / "set")
    assert DistilledSet.load(tmp_path / "set").ipc == 1
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_full_disk_is_one_sentence_and_keeps_the_old_set(tmp_path):
    path = make_set(ipc=1).save(tmp_path / "set")
    before = read_all(path)
    problem = r"set cannot be written \(File too large\); free space or pass another path"
    with pytest.raises(StoreError, match=problem), no_space():
        make_set(ipc=5).save(path)
    assert read_all(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_full_disk_on_a_first_save_leaves_nothing(tmp_path):
    with pytest.raises(StoreError), no_space():
        make_set(ipc=5).save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_failed_second_rename_brings_the_old_set_back(tmp_path, monkeypatch):
    path = make_set(ipc=1).save(tmp_path / "set")
    rename, calls = os.rename, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(atomic.os, "rename", fail_once)
    with pytest.raises(StoreError, match="Input/output error"):
        make_set(ipc=2).save(path)
    assert DistilledSet.load(path).ipc == 1
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_kill_between_the_renames_loses_nothing_and_is_explained(tmp_path, monkeypatch):
    path = make_set(ipc=1).save(tmp_path / "set")
    rename = os.rename

    class Killed(BaseException):
        pass

    def killed_after_first(source, target):
        rename(source, target)
        raise Killed

    monkeypatch.setattr(atomic.os, "rename", killed_after_first)
    with pytest.raises(Killed):
        make_set(ipc=2).save(path)
    monkeypatch.undo()
    with pytest.raises(
        ArtifactError,
        match=r"a save was interrupted here, its previous set lies in .*\.partial-old-\w+-set\.",
    ):
        DistilledSet.load(path)
    make_set(ipc=2).save(path)
    assert DistilledSet.load(path).ipc == 2


def test_leftovers_of_killed_saves_are_removed_when_old(tmp_path):
    young, other, longer = (f".partial-new-{12 * 'c'}-{name}" for name in ("set", "other", "my-set"))
    for age_s, name in (
        (7200, f".partial-new-{12 * 'a'}-set"),
        (7200, f".partial-old-{12 * 'b'}-set"),
        (0, young),
        (7200, other),
        (7200, longer),
    ):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    make_set().save(tmp_path / "set")
    assert {p.name for p in tmp_path.iterdir()} == {young, other, longer, "set"}


def test_directory_with_files_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "home" / "sub").mkdir(parents=True)
    (tmp_path / "home" / "sub" / "thesis.tex").write_text("years")
    with pytest.raises(StoreError, match=r"home holds 'sub/thesis.tex', which would be lost"):
        make_set().save(tmp_path / "home")
    assert (tmp_path / "home" / "sub" / "thesis.tex").read_text() == "years"


def test_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "set").write_text("")
    with pytest.raises(StoreError, match="set is a file, expected a directory to write"):
        make_set().save(tmp_path / "set")


def test_empty_directory_and_link_to_a_directory_are_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_set().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert DistilledSet.load(tmp_path / "real").ipc == 2


def test_set_that_needs_gradients_or_shares_memory_is_saved(tmp_path):
    images = torch.randn(8, 3, 6, 8).transpose(2, 3).requires_grad_()
    path = make_set(images_NCHW=images).save(tmp_path / "set")
    assert torch.equal(DistilledSet.load(path).images_NCHW, images)


def test_loaded_set_does_not_depend_on_its_files(tmp_path):
    distilled = DistilledSet.load(make_set().save(tmp_path / "set"))
    before = distilled.images_NCHW.clone()
    shutil.rmtree(tmp_path / "set")
    assert torch.equal(distilled.images_NCHW, before)


def test_file_is_replaced_whole_or_not_at_all(tmp_path):
    atomic.write_file(tmp_path / "new" / "file", b"old")
    with pytest.raises(StoreError, match="cannot be written"), no_space():
        atomic.write_file(tmp_path / "new" / "file", b"x" * 3000)
    assert read_all(tmp_path) == {"new/file": b"old"}
