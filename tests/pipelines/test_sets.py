"""Sets as commands are given them: what is fetched, what is refused, and what they remember of their source."""

from pathlib import Path

import pytest
from tiny_digits import NUM_CLASSES, digits_set

from atom.artifact import CORE_FILES
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from pipelines import sets
from pipelines.recording import DISTILL_WORKER_S
from pipelines.sets import distil_seconds, local_set
from pipelines.store import Store
from pipelines.tracking import Tracker


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished output: the set, its times, and what else a run leaves."""
    folder = tmp_path / "out"
    digits_set().save(folder / "set")
    store = Store.open(folder)
    store.write_json("times.json", {DISTILL_WORKER_S: 7.0})
    store.write_bytes("checkpoints/class_0000.it00000004.safetensors", b"large")
    return folder


@pytest.mark.parametrize("place", ["", "/set"])
def test_of_a_uri_only_the_files_of_the_set_are_fetched(output: Path, place: str) -> None:
    with local_set(output.as_uri() + place, None) as folder:
        assert not folder.is_relative_to(output)
        assert names_in(folder) == set(CORE_FILES)
        assert DistilledSet.load(folder).num_classes == NUM_CLASSES


def test_times_beside_a_fetched_set_are_found_and_those_of_nobody_are_not(output: Path) -> None:
    with local_set(output.as_uri(), None) as folder:
        assert distil_seconds(DistilledSet.load(folder), folder) == 7.0
    with local_set(output.as_uri() + "/set", None) as folder:
        assert distil_seconds(DistilledSet.load(folder), folder) is None


def test_names_in_a_remote_listing_lead_nowhere(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Hostile:
        def __init__(self) -> None:
            self.store = Store.open(output / "set")

        def list(self, prefix: str = "") -> list[str]:
            return ["../../escaped.txt", *self.store.list(prefix)]

        def exists(self, name: str) -> bool:
            return name == "../../escaped.txt" or self.store.exists(name)

        def read_bytes(self, name: str) -> bytes:
            asked.append(name)
            return b"evil" if name.startswith("..") else self.store.read_bytes(name)

    hostile = Hostile()
    monkeypatch.setattr(sets.Store, "open", lambda _: hostile)
    with local_set("s3://bucket/out/set", None) as folder:
        assert names_in(folder) == set(CORE_FILES)
    assert sorted(asked) == sorted(CORE_FILES)
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_uri_without_a_set_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"--set file:.*: holds neither set.json nor set/set.json; pass the"),
        local_set(tmp_path.as_uri(), None),
    ):
        pass


@pytest.mark.parametrize("place", ["/set", ""])
def test_of_a_run_only_the_files_of_the_set_are_fetched(output: Path, mlflow_uri: str, place: str) -> None:
    with Tracker.start(
        tracking_uri=mlflow_uri, experiment="x", run_name="x", params={}, system_metrics=False
    ) as tracker:
        tracker.log_artifacts(output / "set", path="set")
    with local_set(f"runs:/{tracker.run_id}{place}", mlflow_uri) as folder:
        assert names_in(folder) == set(CORE_FILES)


def test_a_run_without_a_set_is_refused_by_its_name(mlflow_uri: str) -> None:
    with Tracker.start(
        tracking_uri=mlflow_uri, experiment="x", run_name="x", params={}, system_metrics=False
    ) as tracker:
        tracker.log_text("hello", "notes.txt")
    uri = f"runs:/{tracker.run_id}"
    with pytest.raises(ConfigError, match=f"asked for {uri},"), local_set(uri, mlflow_uri):
        pass


def test_a_set_is_loaded_from_the_output_that_holds_it(output: Path) -> None:
    loaded = DistilledSet.load(output)
    assert loaded.images_NCHW.equal(DistilledSet.load(output / "set").images_NCHW)
