"""What a killed driver left half-written goes when the next one takes the output."""

import fcntl
from pathlib import Path

import pytest

from atom.errors import StoreError
from pipelines.output.ownership import lock
from pipelines.output.store import Store


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    output = tmp_path / "out"
    (output / "checkpoints").mkdir(parents=True)
    (output / "checkpoints" / ".partial-0a-unit_0001.safetensors").write_bytes(b"half")
    (output / ".partial-staging" / "data").mkdir(parents=True)
    (output / ".partial-staging" / "data" / "a.parquet").write_bytes(b"half")
    (output / "checkpoints" / "unit_0001.safetensors").write_bytes(b"whole")
    return output


def names(output: Path) -> list[str]:
    return sorted(path.name for path in output.rglob("*") if path.is_file())


def test_half_written_files_are_removed_by_the_next_driver(littered: Path) -> None:
    with lock(Store.open(littered)):
        assert names(littered) == [".lock", "unit_0001.safetensors"]
    assert not (littered / ".partial-staging").exists()


def test_half_written_files_of_a_living_driver_are_left_alone(littered: Path) -> None:
    before = names(littered)
    with open(littered / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="is being written by"), lock(Store.open(littered)):
            pass
    assert names(littered) == sorted([*before, ".lock"])


def test_half_written_files_stay_where_the_file_system_knows_no_locks(
    littered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    before = names(littered)
    with lock(Store.open(littered)):
        assert names(littered) == sorted([*before, ".lock"])
