"""Experts on disk: found by their recipe and images, never mixed up, and refused where they are not what they seem."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import ROOT, run_here
from safetensors.numpy import load_file
from tiny_digits import NETWORK, kill_workers

from atom import data
from atom.data import RealData
from atom.distilled import DistilledSet
from atom.errors import StoreError
from atom.methods.experts import EXPERTS_VERSION, Arrays, Expert, Recipe
from atom.methods.settings import DistillSettings
from pipelines import preparing
from pipelines.distill_case import identity_of
from pipelines.output.expert_files import ExpertFiles
from pipelines.output.provenance import COMMIT_VARIABLE
from pipelines.output.store import Store

EXPERT = Expert(3, 2, Recipe(NETWORK, seed=0, rate=0.1, batch=8))
CLASSES = tuple(range(10))


@pytest.fixture(scope="module")
def real() -> RealData:
    return data.load("digits", data_dir=Path("unused"))


def files(folder: Path, real: RealData, **changes: Any) -> ExpertFiles:
    return ExpertFiles(Store.open(folder), real, **{"preprocess": "p", "device": "cpu", **changes})


def arrays(epochs: int) -> Arrays:
    return {"epochs": np.arange(3 * (epochs + 1), dtype=np.float32).reshape(-1, 3), "velocity": np.ones(3)}


def test_an_expert_is_found_by_all_that_decides_its_bits(tmp_path: Path, real: RealData) -> None:
    files(tmp_path, real).save(EXPERT, CLASSES, arrays(2))
    found = files(tmp_path, real).load(replace(EXPERT, epochs=7), CLASSES)
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in arrays(2).items()
    }
    for other in (
        replace(EXPERT, number=2),
        replace(EXPERT, recipe=replace(EXPERT.recipe, seed=1)),
        replace(EXPERT, recipe=replace(EXPERT.recipe, network="convnet-w8-d1")),
    ):
        assert files(tmp_path, real).load(other, CLASSES) is None
    assert files(tmp_path, real).load(EXPERT, (0, 1)) is None
    assert files(tmp_path, real, preprocess="q").load(EXPERT, CLASSES) is None
    assert files(tmp_path, real, device="cuda").load(EXPERT, CLASSES) is None
    assert files(tmp_path, real.hold_out(0.2)).load(EXPERT, CLASSES) is None


def test_an_expert_knows_every_program_that_trained_it(
    tmp_path: Path, real: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epochs, commit in ((1, "first"), (2, "second")):
        monkeypatch.setenv(COMMIT_VARIABLE, commit)
        stored = files(tmp_path, real)
        stored.load(EXPERT, CLASSES)
        stored.save(EXPERT, CLASSES, arrays(epochs))
    found = files(tmp_path, real)
    found.load(EXPERT, CLASSES)
    assert [one["git_commit"] for one in found.programs] == ["first", "second"]


def test_a_longer_expert_is_not_replaced_by_a_shorter_one(tmp_path: Path, real: RealData) -> None:
    """That of a driver that began earlier and needs fewer epochs."""
    for epochs in (1, 4, 2):
        files(tmp_path, real).save(EXPERT, CLASSES, arrays(epochs))
    found = files(tmp_path, real).load(EXPERT, CLASSES)
    assert found is not None
    assert len(found["epochs"]) == 5
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path, real: RealData) -> None:
    files(tmp_path, real).save(EXPERT, CLASSES, arrays(2))
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-5],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "empty": b"",
            "foreign": (ROOT / "README.md").read_bytes(),
        }[damage]
    )
    with pytest.raises(StoreError, match=r"expert_0003\.safetensors is damaged \(.*\); delete it to have"):
        files(tmp_path, real).load(EXPERT, CLASSES)


def test_a_file_in_another_place_is_refused(tmp_path: Path, real: RealData) -> None:
    other = replace(EXPERT, number=5, recipe=replace(EXPERT.recipe, rate=0.2))
    files(tmp_path, real).save(other, CLASSES, arrays(2))
    (path,) = tmp_path.rglob("*.safetensors")
    place = tmp_path / files(tmp_path, real).name(EXPERT, CLASSES)
    place.parent.mkdir()
    path.rename(place)
    message = r"holds another expert .* number \(found 5, expected 3\), rate \(found 0\.2, expected 0\.1\)"
    with pytest.raises(StoreError, match=message):
        files(tmp_path, real).load(EXPERT, CLASSES)


class KilledError(Exception):
    """The driver is gone."""


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_experts_survive_their_workers_and_drivers_and_serve_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command: list[object] = ["--method", "mtt", "--dataset", "digits", "--network", "convnet-w8-d1"]
    command += ["--num-experts", 2, "--max-start-epoch", 2, "--expert-epochs", 1, "--syn-steps", 2]
    command += ["--iterations", 2, "--eval-seeds", 0]
    save, saved = ExpertFiles.save, []

    def disturbed(self: ExpertFiles, expert: Expert, classes: tuple[int, ...], found: Arrays) -> None:
        save(self, expert, classes, found)
        saved.append(expert.number)
        if len(saved) == 1:
            assert kill_workers() > 0
        if len(saved) == 3:
            raise KilledError

    def run(name: str, *more: object) -> DistilledSet:
        code, lines, errors = run_here(*command, "--output", tmp_path / name, *more)
        assert code == 0, errors
        return DistilledSet.load(lines[-1])

    expected = run("whole", "--num-actors", 1)
    shared = tmp_path / "shared"
    # An epoch at a time.
    monkeypatch.setattr(preparing, "EXPERT_CHUNK_S", 0.0)
    monkeypatch.setattr(ExpertFiles, "save", disturbed)
    with pytest.raises(KilledError):
        run("killed", "--experts", shared, "--num-actors", 2)
    assert not (tmp_path / "killed" / "set").exists()
    monkeypatch.setattr(ExpertFiles, "save", save)
    assert run("killed", "--experts", shared, "--num-actors", 2).images_NCHW.equal(expected.images_NCHW)
    # The experts of the run that nothing disturbed, in which each was trained in one go.
    undisturbed = tmp_path / "whole" / "experts"
    files_in = {path.relative_to(undisturbed) for path in undisturbed.rglob("*.safetensors")}
    assert len(files_in) == 2
    for name in files_in:
        assert np.array_equal(load_file(shared / name)["epochs"], load_file(undisturbed / name)["epochs"])
    assert not (tmp_path / "killed" / "experts").exists()

    monkeypatch.setattr(ExpertFiles, "save", lambda *_: pytest.fail("an expert was trained again"))
    assert run("other", "--experts", shared).images_NCHW.equal(expected.images_NCHW)

    monkeypatch.setattr(ExpertFiles, "save", save)
    next(shared.rglob("*.safetensors")).write_bytes(b"nothing")
    code, _, errors = run_here(*command, "--output", tmp_path / "damaged", "--experts", shared)
    assert code == 2
    assert ".safetensors is damaged" in errors


def test_a_place_for_experts_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.distill import main

    (tmp_path / "file").touch()
    for place, message in {
        tmp_path / "file": "it is a file, expected a directory; pass another place.",
        "nonsense://x": "Cannot open --experts nonsense://x",
        tmp_path / "file" / "below": "a part of the path is a file, not a directory; pass another --experts",
        "": "--experts: received an empty text",
    }.items():
        assert main(["--method", "mtt", "--experts", str(place), "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("method", "known"), [("mtt", True), ("atom", False)])
def test_an_output_that_reads_experts_belongs_to_their_version(
    method: str, known: bool, real: RealData
) -> None:
    identity = identity_of(DistillSettings(method=method, iterations=1, classes_per_group=1), real, "cpu")
    assert identity.get("experts_version") == (EXPERTS_VERSION if known else None)
