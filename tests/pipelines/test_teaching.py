"""Labels by teachers through the command: for a method of anybody's, whatever happens on the way, and for rivals."""

import json
import signal
from pathlib import Path

import pytest
import torch
from command_runs import run_here, start, wait_for
from tiny_digits import NETWORK, NUM_CLASSES, digits_set, white_digits

from atom.distilled import DistilledSet
from atom.methods.experts import train
from atom.methods.settings import DistillSettings
from atom.methods.teacher_settings import TeacherSettings
from atom.methods.teachers import soft_labels, teachers
from pipelines.distill import on_credit
from pipelines.teaching import Taught
from pipelines.workers.faults import Failure

SMALL = ("--dataset", "digits", "--network", NETWORK, "--eval-networks", NETWORK, "--eval-seeds", 1)
SMALL = (*SMALL, "--epochs", 2, "--baselines", "random")
MINE = "from atom.methods.selection import Herding\nclass Mine(Herding):\n    pass\n"


def in_this_process(distilled: DistilledSet, settings: TeacherSettings) -> torch.Tensor:
    """The labels that the set's settings give, without Ray."""
    told = {n: v for n, v in distilled.settings.items() if n not in ("device", "teacher", "method")}
    images, labels = white_digits()
    real = {c: torch.from_numpy(images[labels == c]) for c in range(NUM_CLASSES)}
    cpu = torch.device("cpu")
    weights = [
        one.read_from(train(one, real, num_classes=NUM_CLASSES, device=cpu))["epochs"][-1]
        for one in teachers(settings, DistillSettings.model_validate({**told, "method": "herding"}))
    ]
    known = {"network": NETWORK, "num_classes": NUM_CLASSES, "factor": distilled.factor}
    return soft_labels(distilled.images_NCHW, weights, **known, device=cpu, threads=1)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_a_killed_command_ends_with_the_labels_of_one_process_for_a_method_of_anybodys(
    tmp_path: Path,
) -> None:
    output, mine = tmp_path / "out", tmp_path / "mine.py"
    mine.write_text(MINE)
    command = (*SMALL, "--method", f"{mine}:Mine", "--ipc", 2, "--factor", 2, "--output", output)
    command = (*command, "--num-teachers", 2, "--num-actors", 1)
    killed = start(*command, "--teacher-epoch", 2)
    try:
        wait_for(lambda: any(output.rglob("expert_*.safetensors")) or killed.poll() is not None, limit_s=180)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert not (output / "set").exists()

    code, lines, errors = run_here(*command, "--teacher-epoch", 2)
    assert (code, errors) == (0, "")
    distilled = DistilledSet.load(lines[-1])
    assert distilled.soft_labels is not None
    asked = TeacherSettings(teacher_epoch=2, num_teachers=2)
    assert distilled.soft_labels.equal(in_this_process(distilled, asked))
    assert distilled.settings["teacher"]["epoch"] == 2
    assert [row["method"] for row in distilled.results] == [
        "mine.py:Mine",
        "random",
        "random + teacher labels",
    ]
    assert any("real images with the labels of the set's teachers after epoch 2" in line for line in lines)
    assert "Qin" in (output / "set" / "README.md").read_text()

    # Judged once more, by teachers of the set's recipe: the same ones, whether they are found or trained anew.
    accuracies = [row["mean"] for row in distilled.results]
    judge = ("--set", output / "set", "--eval-networks", NETWORK, "--eval-seeds", 1, "--epochs", 2)
    for number, place in enumerate((("--experts", output / "experts"), ())):
        again = tmp_path / f"again{number}"
        code, lines, errors = run_here(*judge, *place, "--output", again, script="evaluate")
        assert (code, errors) == (0, "")
        rows = json.loads((again / "results.json").read_text())
        assert [row["mean"] for row in rows] == accuracies
        assert (again / "experts").exists() == (not place)
        assert any("with the labels of the set's teachers after epoch 2" in line for line in lines)

    code, _, errors = run_here(*command, "--teacher-epoch", 3)
    assert code == 2
    assert "belongs to other settings: teacher (received" in errors


def test_images_that_no_step_moves_are_credited_to_whoever_made_them_if_asked() -> None:
    made = digits_set(method="dm")
    assert on_credit(made, DistillSettings(method="dm", iterations=0)) == []
    assert (
        on_credit(made, DistillSettings(iterations=1)) == on_credit(None, DistillSettings(iterations=0)) == []
    )
    (note,) = on_credit(made, DistillSettings(method="atom", iterations=0))
    assert note.endswith("will be called atom's; pass --method dm to give it the credit.")
    # Whose images a command of theirs chooses anew.
    assert on_credit(digits_set(method="random"), DistillSettings(iterations=0)) == []


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_set_that_exists_is_labelled_by_starting_from_it(tmp_path: Path) -> None:
    before = digits_set(method="dm")
    command = [
        "--dataset",
        "digits",
        "--network",
        NETWORK,
        "--eval-seeds",
        0,
        "--ipc",
        2,
        "--teacher-epoch",
        1,
    ]
    command += ["--method", "dm", "--iterations", 0, "--init", before.save(tmp_path / "earlier")]
    code, lines, errors = run_here(*command, "--output", tmp_path / "out")
    assert (code, errors) == (0, "")
    labelled = DistilledSet.load(lines[-1])
    assert torch.equal(labelled.images_NCHW, before.images_NCHW)
    assert (labelled.method, labelled.settings["teacher"]["epoch"]) == ("dm", 1)
    assert labelled.soft_labels is not None


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_rivals_of_learned_labels_get_those_of_the_methods_experts_and_validation_is_no_result(
    tmp_path: Path,
) -> None:
    command = (*SMALL, "--method", "datm", "--iterations", 1, "--syn-steps", 1, "--output", tmp_path / "out")
    command = (*command, "--num-experts", 1, "--max-start-epoch", 1, "--expert-epochs", 1)
    code, lines, errors = run_here(*command, "--validation-frac", 0.2, "--judge-on", "validation")
    assert (code, errors) == (0, "")
    assert any("accuracy on training images put aside of Optical" in line for line in lines)
    rows = [line.split("  ")[0] for line in lines if line.startswith(("datm ", "random"))]
    assert rows[-4:] == ["datm", "datm (own training)", "random", "random + teacher labels"]
    assert any("with the labels of the experts of datm after epoch 1" in line for line in lines)
    assert DistilledSet.load(lines[-1]).results == ()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster", "ready_tables")
def test_a_set_is_on_disk_before_its_rivals_are_made_and_outlives_their_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SMALL, "--method", "datm", "--iterations", 1, "--syn-steps", 1, "--num-experts", 1)
    command = (*command, "--max-start-epoch", 1, "--expert-epochs", 1, "--experts", tmp_path / "experts")

    failed = {"teacher, expert 0": Failure("no luck", "no luck")}
    monkeypatch.setattr("pipelines.teaching.teach", lambda *_, **__: Taught(failed=failed))
    code, lines, _ = run_here(*command, "--output", tmp_path / "unlabelled")
    assert code == 1
    assert any("real images beside it hard ones: labelling them failed" in line for line in lines)
    rows = [line.split("  ")[0] for line in lines if line.startswith(("datm ", "random"))]
    assert rows[-3:] == ["datm", "datm (own training)", "random"]
    assert DistilledSet.load(lines[-1]).results

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.baselines.coresets", killed)
    code, _, _ = run_here(*command, "--output", tmp_path / "killed")
    assert code == 130
    assert DistilledSet.load(tmp_path / "killed" / "set").soft_labels is not None
