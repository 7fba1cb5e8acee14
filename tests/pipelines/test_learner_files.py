"""`atom-learner` before it needs Ray: what it finds in a directory, and what it does about that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_runs import run_here

from apps.continual.exemplars import Exemplars
from apps.learner.directory import class_file, learner_json, read_learner
from apps.learner.record import Learner, Version
from atom import data
from pipelines.console.learner_commands import InitCommand
from pipelines.console.options import parse
from pipelines.learning.beginning import begin
from pipelines.learning.images import joined
from pipelines.learning.step import Step, judging
from pipelines.output.ownership import settings_hash
from pipelines.output.store import Store

SMALL = ("--network", "convnet-w8-d2", "--distil-network", "convnet-w8-d2", "--keep-tests", "2")
CLASSES = ["0", "1"]
BEGIN = ("--data", "digits", "--classes", *CLASSES, *SMALL)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Learner]:
    """A learner's learner.json and `current` of two versions, the second in use."""
    shop = tmp_path / "shop"
    step, _ = begin(parse(InitCommand, [str(shop), *BEGIN]), Store.open(shop), known=None)
    first = Version(
        number=1, parent=None, step="init", classes=CLASSES, key="a", images=step.real.fingerprint
    )
    second = first.model_copy(update={"number": 2, "parent": 1, "step": "add", "key": "b", "images": "x"})
    learner = step.learner.model_copy(update={"versions": [first, second]})
    shop.mkdir()
    (shop / "learner.json").write_bytes(learner_json(learner))
    (shop / "current").write_text("0002\n")
    return shop, learner


def test_init_leaves_the_files_of_a_project_alone(tmp_path: Path) -> None:
    own = [tmp_path / name for name in ("tests/test_mine.py", "work/thesis.txt", "memory/notes.txt")]
    for path in own:
        path.parent.mkdir()
        path.write_text("mine")
    code, _, errors = run_here("init", tmp_path, "--data", "digits", *SMALL, script="learner")
    assert code == 2
    assert errors.startswith(
        f"ConfigError: {tmp_path} holds memory/notes.txt, which is no part of a learner;"
    )
    assert errors.count("\n") == 1
    assert all(path.read_text() == "mine" for path in own)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("removed", ["", "deleted when '2' was forgotten"])
def test_the_same_init_again_leaves_the_version_in_use(
    removed: str, begun: tuple[Path, Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, learner = begun
    served: list[Path] = []
    monkeypatch.setattr(
        "pipelines.learning.tracking.keep_served", lambda _, directory, __: served.append(directory)
    )
    first, second = learner.versions
    versions = [first.model_copy(update={"removed": removed}), second]
    learner = learner.model_copy(update={"versions": versions})
    (shop / "learner.json").write_bytes(learner_json(learner))
    code, said, errors = run_here("init", shop, *BEGIN, script="learner")
    assert (code, errors) == (0, "")
    assert said[-1] == "This learner is begun already, and version 2 is current; there is nothing to do."
    assert (shop / "current").read_text() == "0002\n"
    assert read_learner(shop) == learner
    assert served == [shop]


def step_of(tmp_path: Path, *, returns: str, given: tuple[str, ...]) -> tuple[Step, dict[str, np.ndarray]]:
    """A step in which a class comes back with inverted images, and what is kept of all before it."""
    shop, real = tmp_path / "shop", data.load("digits", data_dir=tmp_path)
    step, _ = begin(parse(InitCommand, [str(shop), *BEGIN]), Store.open(shop), known=None)
    tests, kept = {}, {}
    for label, name in enumerate(CLASSES):
        kept[name] = real.test.images[real.test.indices_of(label)[:2]]
        tests[name], content = class_file(
            Exemplars(kept[name]), name, kind="tests", stands_for=9, folder="tests"
        )
        (shop / tests[name].file).parent.mkdir(parents=True, exist_ok=True)
        (shop / tests[name].file).write_bytes(content)
    version = Version(number=1, parent=None, step="init", classes=CLASSES, key="a", tests=tests)
    label = CLASSES.index(returns)
    judged = [real.test.images[real.test.indices_of(CLASSES.index(name))[2:5]] for name in given]
    changed = replace(
        step.real,
        num_old=2,
        train={label: 255 - step.real.train[label]},
        kept_tests={label: 255 - kept[returns]},
        judged=joined({CLASSES.index(name): images for name, images in zip(given, judged, strict=True)})
        if given
        else None,
    )
    learner = step.learner.model_copy(update={"versions": [version]})
    return replace(step, learner=learner, parent=version, real=changed), kept


def test_a_class_that_comes_back_is_judged_by_its_old_look(tmp_path: Path) -> None:
    step, kept = step_of(tmp_path, returns="1", given=())
    pixels, judged_by = judging(step)
    assert pixels is not None
    assert judged_by == "kept of every class"
    for label, name in enumerate(CLASSES):
        assert np.array_equal(pixels.images_NCHW[pixels.labels_N == label], kept[name])


def test_old_classes_that_given_images_do_not_show_are_judged_by_kept_ones(tmp_path: Path) -> None:
    step, kept = step_of(tmp_path, returns="1", given=("1",))
    pixels, judged_by = judging(step)
    assert pixels is not None
    assert judged_by == "given by --test, and kept of classes that it does not show"
    assert np.array_equal(pixels.images_NCHW[pixels.labels_N == 0], kept["0"])
    assert (pixels.labels_N == 1).sum() == 3
    assert judging(step_of(tmp_path, returns="1", given=("0", "1"))[0])[1] == "given by --test"


def test_a_killed_step_begins_anew_where_the_method_makes_other_images_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, _ = step_of(tmp_path, returns="1", given=())
    assert step.kind == "distilled"
    real = replace(step, kind="herding")
    before = [settings_hash(one.identity("cpu")) for one in (step, real)]
    monkeypatch.setattr("pipelines.learning.step.images_version", lambda method: "later")
    after = [settings_hash(one.identity("cpu")) for one in (step, real)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_dry_run_tells_bytes_on_disk_and_the_time_of_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.learning.dry_run._distil_seconds", lambda *_: 7.0)
    few = ("--iterations", 2, "--batch-real", 8, "--epochs", 2, "--step-epochs", 1, "--budget", "4/class")
    asked = ("--dry-run", "--memory", "herding", "--compile", "off", *few)
    shop = tmp_path / "shop"
    code, said, errors = run_here("init", shop, *BEGIN, *asked, script="learner")
    assert code == 0, errors
    text = " ".join(said)
    # Of two classes four images of 8 x 8 bytes each, and two to test by.
    assert "About 0 s of distillation" in text
    assert "0.5 kB for the memory of these classes and 0.3 kB for their test images" in text
    assert "--validation-frac" not in text
    code, said, errors = run_here("init", shop, *BEGIN, *asked, "--validation-frac", 0.2, script="learner")
    assert code == 0, errors
    text = " ".join(said)
    assert "About 7 s of distillation" in text
    assert "for two networks that learn from memory alone, distillation for the comparison alone" in text
    assert not shop.exists()
