"""Memory of the driver and of the object store is that of the classes in work, however many there are."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW, MANY, IMAGES, SIDE = 6, 30, 500, 64


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_number_of_classes(tmp_path: Path) -> None:
    """Of the pixels of more classes nothing stays, where nine times their bytes did.

    The distilled set itself does, whose writing takes 0.6 MB a class: hence the quarter.
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
        assert peaks[MANY][held] - peaks[FEW][held] < came_mib / 4, peaks
