"""Memory of the driver and of the object store is that of the classes in work, however many there are."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atom.data import ImageSet, RealData, mapped
from pipelines.console.commands import DistillCommand
from pipelines.real_images import load_real

ROOT = Path(__file__).parents[2]
FEW, MANY, IMAGES, SIDE = 6, 30, 500, 64


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what is held")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_number_of_classes(tmp_path: Path) -> None:
    """Of the pixels of more classes nothing stays, where nine times their bytes did.

    The distilled set itself does, whose writing takes 0.6 MB a class, and a loaded machine collects late: hence the
    half.
    """
    spec = importlib.util.spec_from_file_location("large_set", ROOT / "benchmarks" / "large_set.py")
    assert spec is not None
    assert spec.loader is not None
    large_set = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(large_set)
    peaks = {}
    for num_classes in (FEW, MANY):
        place = tmp_path / str(num_classes)
        large_set.make_set(place / "set", num_classes, IMAGES, SIDE, shuffled=True)
        peaks[num_classes] = large_set.measured(place, num_actors=1)
        assert peaks[num_classes]["exit"] == 0
    came_mib = (MANY - FEW) * IMAGES * 3 * SIDE**2 / 2**20
    for held in ("driver_mib", "driver_shared_mib"):
        assert min(peaks[FEW][held], peaks[MANY][held]) > 0, peaks
        assert peaks[MANY][held] - peaks[FEW][held] < came_mib / 2, peaks


@pytest.mark.parametrize("smoke", [False, True])
def test_images_put_aside_of_a_cached_source_leave_the_others_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, smoke: bool
) -> None:
    for part in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(4):
                image = np.full((4, 4), 50 * k + number, np.uint8)
                Image.fromarray(image).save(tmp_path / "pets" / part / name / f"{number}.png")
    folders: list[Path | None] = []
    subset = ImageSet.subset

    def noted(images: ImageSet, indices: object, *, folder: Path | None = None) -> ImageSet:
        folders.append(folder)
        return subset(images, indices, folder=folder)

    monkeypatch.setattr(ImageSet, "subset", noted)
    load(tmp_path, f"folder:{tmp_path / 'pets'}", smoke=smoke)
    # The hundred images a class of a smoke run are few.
    assert folders.count(None) == (2 if smoke else 0)
    assert set(folders) - {None} == {tmp_path / "data" / "cache"}


def test_a_source_that_keeps_nothing_decoded_needs_no_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)
    (tmp_path / "data").write_text("no directory")
    assert load(tmp_path, "digits", smoke=False).validation is not None
    assert not caplog.text


def load(tmp_path: Path, dataset: str, *, smoke: bool) -> RealData:
    command = DistillCommand.of(
        dataset=dataset, data_dir=tmp_path / "data", validation_frac=0.25, train_per_class=2
    )
    return load_real(command.data, smoke=smoke)
