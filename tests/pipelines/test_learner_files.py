"""`atom-learner` before it needs Ray: what it finds in a directory, and what it does about that."""

from pathlib import Path

import pytest
from command_runs import run_here

from apps.learner.directory import learner_json, read_learner
from apps.learner.record import Learner, Version
from pipelines.console.learner_commands import InitCommand
from pipelines.console.options import parse
from pipelines.learning.beginning import begin
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
def test_the_same_init_again_leaves_the_version_in_use(removed: str, begun: tuple[Path, Learner]) -> None:
    shop, learner = begun
    first, second = learner.versions
    versions = [first.model_copy(update={"removed": removed}), second]
    learner = learner.model_copy(update={"versions": versions})
    (shop / "learner.json").write_bytes(learner_json(learner))
    code, said, errors = run_here("init", shop, *BEGIN, script="learner")
    assert (code, errors) == (0, "")
    assert said[-1] == "This learner is begun already, and version 2 is current; there is nothing to do."
    assert (shop / "current").read_text() == "0002\n"
    assert read_learner(shop) == learner
