"""What a step comes to: accuracies by class, which memory was worth more, and whether its version becomes current."""

from collections.abc import Mapping

from apps.continual.exemplars import Exemplars
from apps.learner.directory import folder_of
from apps.learner.gate import COLUMNS, accuracy_rows, fallen, refusal
from apps.learner.record import Accuracy, Learner, Version
from apps.learner.step import StepOutcome
from pipelines.console.command import EXIT_FAILED, say
from pipelines.console.progress import print_table
from pipelines.learning.step import Step
from pipelines.learning.versions import drop_work, move_current, set_note


def judge(step: Step, learner: Learner, version: Version) -> int:
    """Make the version current unless an old class lost too much; returns the exit code."""
    old = version.classes[: step.real.num_old]
    lost = fallen({n: one for n, one in version.accuracies.items() if n in old}, max_drop=step.max_drop)
    if version.accuracies:
        print_table(
            f"Accuracy by class, test images {version.judged_by}",
            list(COLUMNS),
            [tuple(row) for row in accuracy_rows(version.classes, version.accuracies)],
        )
    untested = [name for name in old if version.accuracies.get(name, Accuracy()).before is None]
    if untested:
        say(
            f"Note: {', '.join(untested[:8])}: no test images, so the gate cannot see what they lost; pass --test, or"
            " begin a learner with --keep-tests."
        )
    note = refusal(lost, max_drop=step.max_drop)
    set_note(step.store, learner, version.number, f"refused: {note}" if note else "")
    where = step.store.where(folder_of(version.number))
    # Work goes last: it names the run in MLflow that a command goes on with which was killed before.
    if not note:
        move_current(step.store, version.number)
    drop_work(step.directory)
    if note:
        current = "" if step.parent is None else f"; version {step.parent.number} stays current"
        say(
            f"Refused: version {version.number}: {note}{current}. Pass a larger --max-drop to take it all the same."
        )
        say(f"{where}/report.html")
        return EXIT_FAILED
    say(f"Version {version.number} is current: {len(version.classes)} classes.")
    say(f"{where}/report.html")
    return 0


def say_rivals(rivals: Mapping[str, Mapping[int, Exemplars]], outcome: StepOutcome) -> None:
    """Which form stored more accuracy a byte, where that was asked."""
    if not outcome.rivals:
        return
    rows, worth = [], {}
    for name, accuracy in outcome.rivals.items():
        num_bytes = sum(one.num_bytes for one in rivals[name].values())
        images = sum(one.num_images for one in rivals[name].values())
        worth[name] = 1000 * accuracy / num_bytes
        rows.append((name, images, f"{num_bytes:,}", f"{accuracy:.1f}", f"{worth[name]:.2f}"))
    print_table(
        "Memory of this step's classes, and the accuracy on images put aside of a new network that learned from memory"
        " alone",
        ["memory", "images", "bytes", "accuracy, %", "points a kB"],
        rows,
    )
    best = max(worth, key=worth.__getitem__)
    say(f"{best} stored more accuracy a byte.")


__all__ = ["judge", "say_rivals"]
