"""Sets as commands are given them: what is fetched, what is refused, and what they remember of their source."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import NUM_CLASSES, digits_set, problem, white_digits

from atom import data
from atom.artifact import CORE_FILES
from atom.data import RealData
from atom.distilled import DistilledSet, describe_source
from atom.errors import ConfigError
from atom.methods.method import State
from atom.methods.soundness import joined
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings
from pipelines import sets
from pipelines.console.commands import DataSettings, DistillCommand
from pipelines.distill import assemble
from pipelines.distill import publish as publish_set
from pipelines.distill_case import Case
from pipelines.distillation import Distillation
from pipelines.evaluation import Row, judged_sets, remarks, small_set
from pipelines.output.provenance import COMMIT_VARIABLE
from pipelines.output.records import DISTILL_WORKER_S, maker_facts, note_maker, note_source
from pipelines.output.store import Store
from pipelines.sets import check_same_source, distil_seconds, fingerprint, held_out, local_set, real_source
from pipelines.tracking import Tracker
from pipelines.workers.remote import Trial, TrialContext, run_trial
from pipelines.workers.resources import ActorSize


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished output: the set, its times, and what else a run leaves."""
    folder = tmp_path / "out"
    digits_set().save(folder / "set")
    store = Store.open(folder)
    store.write_json("times.json", {DISTILL_WORKER_S: 7.0})
    store.write_bytes("checkpoints/unit_0000.safetensors", b"large")
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
    monkeypatch.setattr(sets.Store, "open", lambda _, flag: hostile)
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
        tracking_uri=mlflow_uri, experiment="x", command="x", run_name="x", params={}, system_metrics=False
    ) as tracker:
        tracker.log_artifacts(
            lambda folder: shutil.copytree(output / "set", folder, dirs_exist_ok=True), path="set"
        )
    with local_set(f"runs:/{tracker.run_id}{place}", mlflow_uri) as folder:
        assert names_in(folder) == set(CORE_FILES)


def test_a_run_without_a_set_is_refused_by_its_name(mlflow_uri: str) -> None:
    with Tracker.start(
        tracking_uri=mlflow_uri, experiment="x", command="x", run_name="x", params={}, system_metrics=False
    ) as tracker:
        tracker.log_text("hello", "notes.txt")
    uri = f"runs:/{tracker.run_id}"
    with pytest.raises(ConfigError, match=f"asked for {uri},"), local_set(uri, mlflow_uri):
        pass


def test_a_set_is_loaded_from_the_output_that_holds_it(output: Path) -> None:
    loaded = DistilledSet.load(output)
    assert loaded.images_NCHW.equal(DistilledSet.load(output / "set").images_NCHW)


def photos(folder: Path) -> RealData:
    """Six grey squares in two classes, as a folder of somebody's own."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return data.load(f"folder:{folder}", data_dir=folder.parent / "data")


def publish(home: Path, *, network: str = "convnet", results: Any = (), programs: Any = ()) -> Path:
    """An output whose distillation is done, published by the job; returns the output."""
    there = (home / "photos").exists()
    real = (
        data.load(f"folder:{home / 'photos'}", data_dir=home / "data") if there else photos(home / "photos")
    )
    settings = problem().settings.model_copy(update={"network": network})
    store = Store.open(home / "out")
    command, size = DistillCommand.of(dataset=real.spec), ActorSize(1, cpus=1, gpus=0)
    units = [(0,), (1,)]
    case = Case(command, settings, EvaluateSettings(), real, store, size, "cpu", "digest", units)
    preprocess = Preprocess.fit(real.train.images, zca=False)
    white = preprocess.apply(real.train.images).numpy()
    images = {(c,): white[real.train.indices_of(c)[:1]][None] for c in range(2)}
    states = {unit: State.first({"images": one}, columns=1) for unit, one in images.items()}
    outcome = Distillation(states=states, programs=list(programs))
    distilled = assemble(case, joined(outcome.parts(settings)), outcome.programs, preprocess)
    publish_set(case, distilled.with_results(results) if results else distilled)
    return home / "out"


def test_a_set_that_started_from_other_images_is_not_held_out(tmp_path: Path) -> None:
    digits = data.load("digits", data_dir=tmp_path)
    kept = digits.hold_out(0.1)
    apart = digits_set(source=describe_source(kept))
    assert held_out(apart, kept)
    whole = {"started_from": [describe_source(digits)]}
    assert not held_out(digits_set(source={**describe_source(kept), **whole}), kept)
    assert held_out(digits_set(source={**describe_source(kept), "started_from": apart.sources}), kept)


def test_a_digest_covers_images_names_factor_and_preprocessing() -> None:
    plain = digits_set()
    renamed = tuple(reversed(plain.class_names))
    images = plain.images_NCHW.clone()
    images[0, 0, 0, 0] += 1
    other = Preprocess(plain.preprocess.mean_C + 0.1, plain.preprocess.std_C)
    changed = [
        digits_set(**one)
        for one in ({"class_names": renamed}, {"images_NCHW": images}, {"preprocess": other}, {"factor": 2})
    ]
    assert len({fingerprint(one) for one in [plain, digits_set(), *changed]}) == 5


def test_outputs_of_two_machines_hold_the_same_set_byte_for_byte(tmp_path: Path) -> None:
    mine, theirs = (publish(tmp_path / name, network=f"{tmp_path / name}/net.py:build") for name in "ab")
    assert names_in(mine / "set") == names_in(theirs / "set")
    for name in names_in(mine / "set"):
        content = (mine / "set" / name).read_bytes()
        assert content == (theirs / "set" / name).read_bytes(), name
        assert str(tmp_path).encode() not in content, name


def test_an_output_knows_where_its_source_lies_and_its_set_does_not(tmp_path: Path) -> None:
    output = publish(tmp_path)
    asked = DataSettings(dataset="", image_size=None)
    distilled = DistilledSet.load(output)
    for location in (output, output / "set"):
        found = real_source(distilled, str(location), asked)
        assert (found.dataset, found.image_size) == (f"folder:{tmp_path / 'photos'}", None)
    copied = distilled.save(tmp_path / "elsewhere")
    with pytest.raises(
        ConfigError, match=r"--set \S+elsewhere: .*photos \(folder\).*pass --dataset folder:PATH"
    ):
        real_source(distilled, str(copied), asked)
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="pass --dataset folder:PATH"):
        real_source(distilled, str(output), asked)


def test_a_source_at_a_uri_is_found_again_unless_it_came_with_a_password(tmp_path: Path) -> None:
    digits, asked = data.load("digits", data_dir=tmp_path), DataSettings(dataset="")
    spec = "folder:s3://images/pets"
    note_source(Store.open(tmp_path), replace(digits, spec=spec))
    assert real_source(digits_set(), str(tmp_path), asked).dataset == spec
    note_source(Store.open(tmp_path), replace(digits, spec="folder:s3://***@images/pets"))
    assert real_source(digits_set(), str(tmp_path), asked).dataset == "digits"


@pytest.mark.parametrize("dataset", ["", "digits"])
def test_the_image_size_of_a_set_is_remembered(dataset: str) -> None:
    distilled = digits_set()
    resized = replace(distilled, source={**distilled.source, "image_size": 16})
    older = replace(distilled, source={"spec": "digits"})
    asked = DataSettings(dataset=dataset)
    assert real_source(resized, "set", asked) == DataSettings(dataset="digits", image_size=16)
    assert real_source(older, "set", asked).image_size == (None if dataset else 8)
    assert real_source(distilled, "set", asked) == DataSettings(dataset="digits")
    own = DataSettings(dataset=dataset, image_size=32)
    assert real_source(resized, "set", own).image_size == 32


def test_classes_that_a_source_does_not_name_are_called_as_in_the_set() -> None:
    distilled = digits_set()
    asked = DataSettings(dataset="npz:mnist.npz")
    assert real_source(distilled, "set", asked).class_names == distilled.class_names
    own = asked.changed(class_names=("a", "b"))
    assert real_source(distilled, "set", own).class_names == ("a", "b")
    assert real_source(distilled, "set", DataSettings(dataset="folder:digits")).class_names is None


def test_another_shape_names_the_flag_and_the_own_source_is_not_asked_for() -> None:
    real = data.load("digits", data_dir=Path("unused"), image_size=16)
    with pytest.raises(ConfigError, match=r"\(channels, height, width\); pass --image-size 8\.$"):
        check_same_source(digits_set(), real)
    other = replace(digits_set(), source={"name": "mnist"})
    with pytest.raises(ConfigError, match=r"pass the set's own source, or --image-size 8\.$"):
        check_same_source(other, real)
    renamed = replace(digits_set(), class_names=tuple("abcdefghij"))
    flags = (
        "it has changed since.* with the same --image-column, --label-column, --test-part and --class-names"
    )
    with pytest.raises(ConfigError, match=flags):
        check_same_source(renamed, real)


BY_FIRST = {"git_commit": "first", "versions": {"torch": "2.1"}}
BY_SECOND = {"git_commit": "second", "versions": {"torch": "2.2"}}
RESULTS = [{"method": "atom", "network": "convnet", "mean": 50.0, "std": 1.0, "n": 2}]


def test_a_set_says_who_computed_its_images_and_not_who_published_it(tmp_path: Path) -> None:
    output = publish(tmp_path, programs=[BY_FIRST, BY_SECOND])
    distilled = DistilledSet.load(output)
    assert (distilled.git_commit, distilled.versions) == ("second", {"torch": "2.2"})
    assert distilled.earlier_programs == (BY_FIRST,)
    card = (output / "set" / "README.md").read_text()
    assert "| commit | second |" in card
    assert "| begun by commit | first torch 2.1 |" in card
    unknown = DistilledSet.load(publish(tmp_path / "unknown"))
    assert (unknown.git_commit, unknown.versions, unknown.earlier_programs) == (None, {}, ())


def test_a_set_that_stands_is_not_published_again_and_keeps_its_accuracies(tmp_path: Path) -> None:
    output = publish(tmp_path, programs=[BY_FIRST], results=RESULTS)
    written = {path: path.stat().st_mtime_ns for path in (output / "set").rglob("*")}
    publish(tmp_path, programs=[BY_FIRST])
    assert {path: path.stat().st_mtime_ns for path in (output / "set").rglob("*")} == written
    assert [row["mean"] for row in DistilledSet.load(output).results] == [50.0]
    (output / "set" / "sheet.png").unlink()
    publish(tmp_path, programs=[BY_FIRST])
    assert (output / "set" / "sheet.png").exists()


def test_reports_name_everybody_who_computed_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    assert maker_facts(store)["commit"] == "not known"
    for commit, workers in (("first", 1), ("second", 2), ("second", 2)):
        monkeypatch.setenv(COMMIT_VARIABLE, commit)
        note_maker(store, ActorSize(workers, cpus=1, gpus=0))
    monkeypatch.setenv(COMMIT_VARIABLE, "third")
    facts = maker_facts(store)
    assert facts["commit"] == "first; then second"
    assert [text[-9:] for text in facts["hardware"].split("; then ")] == ["1 workers", "2 workers"]
    assert "; then " not in facts["versions"]


def test_a_digest_covers_how_to_train_on_the_set_and_smoke_runs_shorten_that() -> None:
    plain, trained = digits_set(), digits_set(training={"lr_net": 0.02, "epochs": 1000})
    assert fingerprint(plain) != fingerprint(trained)
    assert [small.name for small in judged_sets(plain, "random")] == ["random"]
    common, own = judged_sets(trained, "random")
    settings = EvaluateSettings(epochs=7, eval_dsa_strategy="none")
    assert (common.name, common.settings(settings)) == ("random", settings)
    assert (own.name, own.settings(settings).lr_net, own.settings(settings).epochs) == (
        "random (own training)",
        0.02,
        1000,
    )
    assert judged_sets(trained, "random", smoke=True)[1].settings(settings).epochs == 2


def test_steps_of_its_own_are_judged_whole_and_told_in_short() -> None:
    own = {"epochs": 3, "step_sizes": [0.5, 0.25, 0.125], "eval_dsa_strategy": "none"}
    _, judged = judged_sets(digits_set(training=own), "random", smoke=True)
    settings = judged.settings(EvaluateSettings(epochs=7, weight_decay=0.1))
    assert (settings.epochs, settings.weight_decay) == (3, 0.1)
    assert settings.model_dump()["step_sizes"] == (0.5, 0.25, 0.125)
    row = Row("random", "convnet", 50.0, std=1.0, n=2, epochs=3, stored_images=10, seconds=1.0, training=own)
    assert (
        "epochs=3, step_sizes=3 from 0.125 to 0.5, eval_dsa_strategy=none; all others"
        in remarks([row], "x")[0]
    )


def with_soft_labels(peak: float) -> DistilledSet:
    distilled = digits_set()
    soft = torch.full((len(distilled.labels), NUM_CLASSES), (1 - peak) / (NUM_CLASSES - 1))
    return replace(distilled, soft_labels=soft.scatter(1, distilled.labels[:, None], peak))


def test_soft_labels_are_trained_on_and_told_apart() -> None:
    sharp, blunt, white = with_soft_labels(1.0), with_soft_labels(0.0), white_digits()
    assert len({fingerprint(one) for one in (digits_set(), sharp, blunt)}) == 3
    settings = EvaluateSettings(epochs=40, batch_train=16, eval_precision="float32", eval_dsa_strategy="none")
    context = TrialContext(NUM_CLASSES, {"set": settings}, device_kind="cpu", threads=1)
    trial = Trial("set", "convnet-w8-d1", 0)

    def accuracy(distilled: DistilledSet) -> float:
        draws: Any = {"set": small_set(distilled, "set").draws}
        return run_trial(trial, draws, white[0][:100], white[1][:100], context)["accuracy"]

    # Labels that say "any class but this one" teach a network to be wrong.
    assert accuracy(blunt) < 10 < accuracy(sharp)
