"""A method of a user's own, that of the page which tells how to add one: nothing of the project knows of it."""

import os
import pickle
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import ROOT, checkpointed, run, start, wait_for
from tiny_digits import NUM_CLASSES, real_references, white_digits

from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.methods.lookup import find_method
from atom.methods.method import State
from atom.methods.settings import DistillSettings
from atom.methods.soundness import joined
from atom.resolve import resolve_settings
from pipelines.distillation import Distillation, distil_classes
from pipelines.loss_curves import stored_curves
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.store import Store
from pipelines.workers.pool import Limits
from pipelines.workers.remote import DistillWorker, Problem
from pipelines.workers.resources import ActorSize

ITERATIONS = 120
PAGE = ROOT / "docs" / "add-a-method.md"
MINE = "from atom import Method\nclass Mine(Method):"
SOUND = " start = advance = about = None;"
OPTIONS = f"from atom import Settings\nclass Own(Settings): OPTION\n{MINE}{SOUND} Options = Own"
SHAPE = {"channels": 1, "height": 8, "width": 8, "num_classes": NUM_CLASSES}


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the page."""
    file = tmp_path_factory.mktemp("mine") / "blend.py"
    file.write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])  # pyrefly: ignore
    return file


def test_the_method_of_the_page_has_forty_lines(blend: Path) -> None:
    code = [line for line in blend.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= 40


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_is_distilled_killed_resumed_evaluated_and_loaded(blend: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command: list[object] = ["--method", f"{blend}:Blend", "--pull", "0.1", "--iterations", ITERATIONS]
    command += ["--checkpoint-every", 2, "--num-actors", 1, "--output", output, "--baselines", "random"]
    command += ["--eval-seeds", 1, "--epochs", 3, "--eval-networks", "convnet-w8-d2"]
    first = start(*command)
    wait_for(lambda: checkpointed(output) > 4)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert checkpointed(output) > 4
    assert not (output / "set").exists()

    code, lines, errors = run(*command)
    assert (code, errors) == (0, "")
    made = DistilledSet.load(lines[-1])

    assert made.images_NCHW.equal(torch.from_numpy(in_this_process(blend)))
    assert made.method == "blend.py:Blend"
    assert made.soft_labels is not None
    assert made.soft_labels.argmax(1).tolist() == made.labels.tolist()
    assert made.training == {"lr_net": 0.02}
    card = (output / "set" / "README.md").read_text()
    assert "made by sliding real images towards the mean of their class" in card
    # Judged by the common protocol, beside its rival, and by its own training, which the last lines tell.
    rows = [(row["method"], row.get("training")) for row in made.results]
    assert rows == [
        ("blend.py:Blend", None),
        ("blend.py:Blend (own training)", {"lr_net": 0.02}),
        ("random", None),
    ]
    assert any(
        "by what the set carries, lr_net=0.02; all others by the same protocol" in line for line in lines
    )
    assert str(tmp_path) not in (output / "set" / "set.json").read_text()

    # An edit of the file is another method: its images are not mixed with those of before.
    blend.write_text(blend.read_text().replace("0.001", "0.002"))
    code, _, errors = run(*command)
    assert code == 2
    assert "belongs to other settings: method (received" in errors


def in_this_process(blend: Path) -> np.ndarray:
    """The images [N, C, H, W], without Ray and in one go."""
    asked = DistillSettings(method=f"{blend}:Blend", iterations=ITERATIONS, options={"pull": 0.1})  # pyrefly: ignore
    settings = resolve_settings(asked, device_kind="cpu", symbols=True, **SHAPE)
    method = find_method(settings.method)
    made = method(settings, **SHAPE, device=torch.device("cpu"))
    images, labels = white_digits()
    real = {c: torch.from_numpy(images[labels == c]) for c in range(NUM_CLASSES)}
    prepared = made.prepare_all(real)
    states = {}
    for unit in method.units(settings, range(NUM_CLASSES)):
        begun = made.start(unit, real, prepared=prepared)
        states[unit] = made.advance(begun, ITERATIONS, unit=unit, real=real, prepared=prepared)
    return joined({unit: method.result(settings, unit, state) for unit, state in states.items()}).images[:, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pull", "much"], "--pull"),
        (
            ["--momentum-img", "0.9"],
            "--momentum-img: the method {file}:Blend does not read it; leave it out.",
        ),
        (
            ["--power", "3"],
            "--power: the method {file}:Blend does not read it, only atom, spatial, channel do",
        ),
    ],
)
def test_what_the_method_does_not_read_is_refused(
    blend: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from pipelines.distill import main

    place = ["--output", str(tmp_path / "out"), "--eval-seeds", "0", "--smoke"]
    try:
        code = main(["--method", f"{blend}:Blend", *arguments, *place])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert message.format(file=blend) in "".join(capsys.readouterr())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "has no 'Mine'"),
        ("Mine = 3", "found 3, expected a subclass of"),
        (f"{MINE} pass", "Mine lacks about, advance, start; see docs/add-a-method.md"),
        (
            f"{MINE}{SOUND} unread = frozenset({{'lr_imgg'}})",
            "its unread names 'lr_imgg', which is no setting",
        ),
        (
            f"{MINE}{SOUND} learns_labels = True",
            "its learns_labels is True, expected a classmethod of settings",
        ),
        (
            OPTIONS.replace("OPTION", "ipc: int = 3"),
            "its option 'ipc' is a setting of all methods; rename it.",
        ),
        (
            OPTIONS.replace("OPTION", "epochs: int = 3"),
            "its option 'epochs' is a flag of atom-distill; rename it.",
        ),
        (
            OPTIONS.replace("OPTION", "output: int = 3"),
            "its option 'output' is a flag of atom-distill; rename it.",
        ),
        (f"{MINE} Options = int", "its Options are <class 'int'>, expected atom.Settings"),
        ("raise SystemExit(3)", "cannot import"),
    ],
)
def test_what_is_no_method_is_refused_with_one_sentence(
    source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.distill import main

    (tmp_path / "mine.py").write_text(source)
    assert (
        main(["--method", f"{tmp_path / 'mine.py'}:Mine", "--output", str(tmp_path / "out"), "--smoke"]) == 2
    )
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


JOINT = """
import numpy as np
from atom import About, Method, State

class Joint(Method):
    about = About("nothing")

    @classmethod
    def units(cls, settings, class_ids):
        return [tuple(class_ids)]

    @classmethod
    def preparations(cls, settings):
        return ["one", "two"]

    def prepare(self, name, real):
        if name == "two" and FAILS:
            raise ValueError("no such expert")
        return {"number": np.array(len(real))}

    def start(self, unit, real, *, given=None, prepared):
        import beside
        rate = beside.RATE * prepared["two"]["number"]
        return State.first({"images": self.initial(unit, real), "rate": rate}, columns=1)

    def advance(self, state, until, *, unit, real, prepared, on_iteration=None):
        if STANDS:
            return state
        losses = np.arange(until, dtype=np.float32)[:, None]
        return State(until, state.arrays, losses)
"""


def joint(folder: Path, *, fails: bool = False, stands: bool = False) -> Problem:
    """A method of one unit, one loss and two preparations, in a folder of its own."""
    (folder / "beside.py").write_text("RATE = 0.1")
    file = folder / "joint.py"
    file.write_text(JOINT.replace("FAILS", str(fails)).replace("STANDS", str(stands)))
    asked = DistillSettings(method=f"{file}:Joint", iterations=6)
    settings = resolve_settings(asked, device_kind="cpu", symbols=True, **SHAPE)
    return Problem(settings, device_kind="cpu", **SHAPE)


def distilled_by(told: Problem, folder: Path) -> Distillation:
    return distil_classes(
        told,
        find_method(told.settings.method).units(told.settings, range(NUM_CLASSES)),
        real_references(),
        Checkpoints(Store.open(folder / "out"), "joint"),
        size=ActorSize(2, cpus=1, gpus=0),
        checkpoint_every=2,
        limits=Limits(max_retries=0),
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestJoint:
    def test_a_joint_method_is_one_unit_with_one_curve_and_numbers_keep_their_shape(
        self, tmp_path: Path
    ) -> None:
        outcome = distilled_by(joint(tmp_path), tmp_path)
        ((unit, state),) = outcome.states.items()
        assert unit == tuple(range(NUM_CLASSES))
        assert (state.arrays["rate"].shape, float(state.arrays["rate"])) == ((), pytest.approx(1.0))
        checkpoints = Checkpoints(Store.open(tmp_path / "out"), "joint")
        assert stored_curves(checkpoints, [unit], 6) == [("loss/total", float(t), t) for t in range(6)]
        kept = checkpoints.load(unit)
        assert kept is not None
        assert kept.arrays["rate"].shape == ()

    def test_a_preparation_that_fails_is_told_and_those_that_are_there_are_kept(self, tmp_path: Path) -> None:
        outcome = distilled_by(joint(tmp_path, fails=True), tmp_path)
        assert outcome.states == {}
        ((name, failure),) = outcome.failed_preparations.items()
        assert (name, failure.reason) == ("two", "ValueError: no such expert")
        assert len(list((tmp_path / "out" / "checkpoints").iterdir())) == 1

    def test_a_method_that_does_not_advance_fails_instead_of_going_on_for_ever(self, tmp_path: Path) -> None:
        outcome = distilled_by(joint(tmp_path, stands=True), tmp_path)
        (failure,) = outcome.failed.values()
        assert "it stands at iteration 0, expected 2" in failure.reason


def test_soft_labels_that_a_method_does_not_announce_are_its_fault(blend: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent.py"
    silent.write_text(blend.read_text().replace("return True", "return False"))
    settings = DistillSettings(method=f"{silent}:Blend")
    state = State.first(
        {"images": np.zeros((1, 1, 1, 8, 8), np.float32), "labels": np.eye(1)[None]}, columns=1
    )
    with pytest.raises(ConfigError, match="its learns_labels says False, and its results are otherwise"):
        Distillation(states={(0,): state}).parts(settings)


def test_a_worker_that_lacks_the_file_says_so_when_it_needs_it(tmp_path: Path) -> None:
    told = joint(tmp_path)
    content = pickle.dumps(told)
    (tmp_path / "joint.py").unlink()
    for name in [name for name in sys.modules if name.endswith("joint_py")]:
        del sys.modules[name]
    with pytest.raises(ConfigError, match=r"cannot import .*joint\.py .*no such file"):
        DistillWorker(pickle.loads(content)).prepare("one", {})
