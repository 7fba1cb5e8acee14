"""What the numbers of an experiment on a stream say, in a few plain sentences."""

# C cells, S steps

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from apps.continual.metrics import final_average_accuracy
from apps.continual.results import CellResult, ContinualResults, Spread, StepResult, Summary, spread
from apps.page import duration, listed, number

REFERENCES = {"finetune": "finetune: keeps nothing", "joint": "joint: keeps all training images"}
"""Learners without a replay memory, the floor and the ceiling of the others, and how pictures name them."""

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, eq=False)
class Group:
    """The cells of one memory under one learner that pictures and tables speak of; `group_of` makes one."""

    cells: tuple[CellResult, ...]
    """The complete ones; if there are none, those with a step done."""
    num_steps: int
    """Steps that all of them have done."""
    complete: bool
    """Whether they have gone through the whole stream."""

    def seen_percent(self) -> np.ndarray:
        """Accuracy on the classes seen after each step, percent [C, S]."""
        return np.array([[step.accuracy_on_seen for step in self._steps(cell)] for cell in self.cells])

    def mean_percent(self) -> np.ndarray:
        """Mean accuracy on the images of step j after step i, percent [S, S]; NaN above the diagonal."""
        percent_SS = np.full((self.num_steps, self.num_steps), np.nan)
        for i in range(self.num_steps):
            percent_SS[i, : i + 1] = np.mean([self._steps(cell)[i].class_row for cell in self.cells], axis=0)
        return percent_SS

    def _steps(self, cell: CellResult) -> Sequence[StepResult]:
        return cell.steps[: self.num_steps]


def cells_by_pair(results: ContinualResults) -> dict[tuple[str, str], list[CellResult]]:
    """All cells by (learner, memory): learners as they first come, the references after the others."""
    learners = dict.fromkeys(result.cell.learner for result in results.cells)
    pairs: dict[tuple[str, str], list[CellResult]] = {}
    for learner in sorted(learners, key=lambda name: name in REFERENCES):
        for result in results.cells:
            if result.cell.learner == learner:
                pairs.setdefault((learner, result.cell.memory), []).append(result)
    return pairs


def group_of(cells: Iterable[CellResult]) -> Group | None:
    """What can be shown of these cells; None if none of them has done a step."""
    begun = tuple(result for result in cells if result.steps)
    complete = tuple(result for result in begun if result.complete)
    shown = complete or begun
    return Group(shown, min(len(result.steps) for result in shown), bool(complete)) if shown else None


def classes_seen(results: ContinualResults) -> list[int]:
    """Classes that have arrived after each step, in every class order; where steps bring no new ones, its number."""
    if not results.classes_grow:
        return list(range(1, results.num_steps + 1))
    steps = next(iter(results.steps.values()))
    return list(accumulate(len(classes) for classes in steps))


def is_distilled(memory: str) -> bool:
    """Whether a memory holds made images: distilled on the way, by whatever method, or beforehand.

    Example:
        >>> [is_distilled(memory) for memory in ("distilled", "distilled-dm", "set", "random")]
        [True, True, True, False]
    """
    return memory.partition("-")[0] in ("distilled", "set")


def size(num_bytes: float) -> str:
    """Bytes in the decimal unit that suits them.

    Example:
        >>> size(999), size(614_400), size(999_999)
        ('999 B', '614 kB', '1 MB')
    """
    power = 0
    while num_bytes >= 999.5 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {_UNITS[power]}"


@dataclass(frozen=True)
class Gain:
    """How much better one memory ends than "random" under one learner, over cells of the same order and seed."""

    memory: str
    learner: str
    points: Spread
    """Difference of the final average accuracies, points."""
    num_pairs: int
    num_ahead: int
    """Pairs in which the memory is the better one; ties are not."""


def gains(results: ContinualResults) -> list[Gain]:
    """Every memory but "random" against it, learner by learner, where both have complete cells in common."""
    finals, found = _finals(results), []
    for (learner, memory), own in finals.items():
        base = finals.get((learner, "random"), {})
        points = [own[key] - base[key] for key in own if key in base]
        if points and memory != "random":
            found.append(Gain(memory, learner, spread(points), len(points), sum(p > 0 for p in points)))
    return found


def near_chance(num_classes: int) -> float:
    """Accuracy, percent, below which a training has probably failed; 0 for a single class, which nothing can fail.

    Half as much again as chance, but no more than a tenth of the way from there to 100. Chosen: of seven runs of
    er-ace on digits at the default rate, one collapsed, to 12.7 %.

    Example:
        >>> near_chance(10), near_chance(2), near_chance(1)
        (15.0, 55.0, 0.0)
    """
    chance = 100 / num_classes
    return min(1.5 * chance, chance + 0.1 * (100 - chance)) if num_classes > 1 else 0.0


def suspicions(results: ContinualResults) -> list[str]:
    """What speaks against taking the numbers as they are: a ceiling that is none, trainings that end near chance."""
    of = {(row.learner, row.memory): row for row in results.summaries}
    found = []
    if joint := of.get(("joint", "none")):
        above = [row for row in results.summaries if _clearly_above(row.final_average, joint.final_average)]
        if above:
            best = max(above, key=lambda row: row.final_average[0])
            others = f" and {len(above) - 1} other{'s' if len(above) > 2 else ''}" if len(above) > 1 else ""
            found.append(
                f"joint keeps all training images, and yet ends at {percent(joint.final_average)} %, below"
                f" {best.memory} under {best.learner} ({percent(best.final_average)} %){others}: it is no ceiling"
                " here, and was trained too shortly or at a wrong rate (--joint-epochs, --lr-net)."
            )
    chance = 100 / results.num_classes
    for (learner, memory), cells in cells_by_pair(results).items():
        lasts = [r.steps[-1].accuracy_on_seen for r in cells if r.complete and r.steps]
        low = sum(last < near_chance(results.num_classes) for last in lasts)
        # Who keeps nothing knows the last step alone, which may be as little.
        if low and memory != "none":
            found.append(
                f"{learner} with {memory} ends near chance ({number(chance, 1)} %) in {low} of {len(lasts)} cells:"
                " suspect the training before the memory, and try a smaller step size or more epochs."
            )
    return found


def findings(results: ContinualResults) -> list[str]:
    """A few plain sentences; "overlap" is that of the ranges mean ± one std over class orders and seeds."""
    if not results.summaries:
        return [f"None of {len(results.cells)} cells is complete, so nothing can be compared yet."]
    ranked: dict[str, list[Summary]] = {}
    for row in sorted(results.summaries, key=lambda row: -row.final_average[0]):
        if row.learner not in REFERENCES:
            ranked.setdefault(row.learner, []).append(row)
    told = (_best(results, ranked), _overlap(ranked), _distilled(results), _forgetting(results, ranked))
    sentences = (*told, *recommendations(results), _cost(results))
    return [*suspicions(results), *(sentence for sentence in sentences if sentence)]


def recommendations(results: ContinualResults) -> list[str]:
    """Which memory to take, learner by learner: of those not clearly below the best, the one that costs least to make,
    and of equal ones the best. Nothing is said of single cells, nor of a learner whose best memory is near chance.

    Clearly below is who falls behind on the same class orders and seeds by more than one standard deviation.
    """
    ranked: dict[str, list[Summary]] = {}
    for row in sorted(results.summaries, key=lambda row: -row.final_average[0]):
        if row.learner not in REFERENCES and row.memory != "none" and row.n > 1:
            ranked.setdefault(row.learner, []).append(row)
    chance, finals = near_chance(results.num_classes), _finals(results)
    return [
        _recommended(rows, finals)
        for rows in ranked.values()
        if len(rows) > 1 and rows[0].final_average[0] > chance
    ]


def _recommended(rows: Sequence[Summary], finals: Mapping[tuple[str, str], Mapping[Any, float]]) -> str:
    def of(row: Summary) -> Mapping[Any, float]:
        return finals[row.learner, row.memory]

    def behind(row: Summary) -> Spread | None:
        points = [of(best)[key] - of(row)[key] for key in of(best) if key in of(row)]
        return spread(points) if len(points) > 1 else None

    def cost(row: Summary) -> float:
        unknown = is_distilled(row.memory) and row.distil_seconds is None
        return math.inf if unknown else row.distil_seconds or 0.0

    def told(row: Summary) -> str:
        made = f", {duration(row.distil_seconds)} to make" if row.distil_seconds else ""
        return f"{row.memory} ({percent(row.final_average)}\u00a0%, {size(row.memory_bytes)}{made})"

    best, *rest = rows
    gaps = [(row, gap) for row in rest if (gap := behind(row)) is not None]
    as_good = [best, *(row for row, (mean, std) in gaps if mean <= (std or 0.0))]
    taken = min(as_good, key=cost)
    text = f"Under {best.learner} take {told(taken)}"
    others = [row for row in as_good if row is not taken]
    if others:
        verb = "is" if len(others) == 1 else "are"
        return f"{text}: {listed([told(row) for row in others])} {verb} not clearly better on the same class orders."
    if not gaps:
        return f"{text}: the others have no class order in common with it."
    row, gap = gaps[0]
    return f"{text}: {told(row)} is {percent(gap)} points below on the same class orders."


def _finals(results: ContinualResults) -> dict[tuple[str, str], dict[tuple[int, int], float]]:
    """Final average accuracy by learner and memory, then by class order and seed, of complete cells."""
    return {
        pair: {
            (r.cell.order, r.cell.seed): final_average_accuracy(r.class_matrix())
            for r in cells
            if r.complete and r.steps
        }
        for pair, cells in cells_by_pair(results).items()
    }


def percent(value: Spread) -> str:
    """Mean and deviation with one decimal, without a sign for the unit."""
    mean, std = value
    return number(mean, 1) + ("" if std is None else f"\u00a0±\u00a0{number(std, 1)}")


CLEAR = 2.0
"""Points of accuracy that single runs differ by for more reasons than luck. Chosen: orders of a stream differ by 0.3 to
2."""


def _clearly_above(one: Spread, other: Spread) -> bool:
    """Whether the ranges mean ± std do not overlap, and the means differ as they are printed.

    Without a spread, of one order and seed, whether they are `CLEAR` apart.
    """
    (mean, std), (low, low_std) = one, other
    if std is None or low_std is None:
        return mean - low > CLEAR
    return mean - std > low + low_std and number(mean, 1) != number(low, 1)


def _best(results: ContinualResults, ranked: dict[str, list[Summary]]) -> str:
    winners: dict[str, list[str]] = {}
    for learner, rows in ranked.items():
        winners.setdefault(rows[0].memory, []).append(f"{learner} ({percent(rows[0].final_average)} %)")
    parts = [f"{memory} under {listed(learners)}" for memory, learners in winners.items()]
    text = (
        f"At the end of {results.stream}, the memory with the highest accuracy, averaged over the steps, is "
    )
    text = text + listed(parts) if parts else "No learner with a memory has a complete cell"
    for row in results.summaries:
        if row.learner in REFERENCES:
            keeps = REFERENCES[row.learner].partition(": ")[2]
            text += f"; {row.learner}, which {keeps}, reaches {percent(row.final_average)} %"
    missing = sum(not result.complete for result in results.cells)
    if missing:
        text += f"; {missing} of {len(results.cells)} cells are not complete and left out of all means"
    return text + "."


def _overlap(ranked: dict[str, list[Summary]]) -> str:
    unclear, clear, unknown = [], [], []
    for learner, rows in ranked.items():
        if len(rows) < 2:
            continue
        (mean, std), (other, other_std) = rows[0].final_average, rows[1].final_average
        second = f"{learner} (second is {rows[1].memory}, {percent(rows[1].final_average)} %)"
        if std is None or other_std is None:
            unknown.append(second)
        else:
            (unclear if mean - std <= other + other_std else clear).append(second)
    parts = []
    if clear:
        parts.append(f"do not overlap under {listed(clear)}")
    if unclear:
        parts.append(f"overlap under {listed(unclear)}, where the order may be chance")
    if unknown:
        parts.append(f"are unknown under {listed(unknown)}, where a single cell says nothing of chance")
    return f"The ranges mean ± std of the best two {listed(parts, '; they ')}." if parts else ""


def _distilled(results: ContinualResults) -> str:
    parts: dict[str, list[str]] = {}
    for gain in (gain for gain in gains(results) if is_distilled(gain.memory)):
        mean, std = gain.points
        word = "more" if mean >= 0 else "less"
        parts.setdefault(gain.memory, []).append(
            f"{percent((abs(mean), std))} points {word} under {gain.learner} (ahead in {gain.num_ahead} of"
            f" {gain.num_pairs} cells)"
        )
    sentences = [f"{memory} reaches {listed(told)}" for memory, told in parts.items()]
    text = "Compared with random on the same class orders and seeds, "
    return text + "; ".join(sentences) + "." if sentences else ""


def _forgetting(results: ContinualResults, ranked: dict[str, list[Summary]]) -> str:
    if results.num_steps < 2:
        return ""
    rows = [rows[0] for rows in ranked.values()]
    parts = [f"{percent(row.forgetting)} points by {row.learner} with {row.memory}" for row in rows]
    parts += [
        f"{percent(row.forgetting)} by {row.learner}"
        for row in results.summaries
        if row.learner in REFERENCES
    ]
    return f"From the best accuracy on a step to the last, the mean loss is {listed(parts)}."


def _cost(results: ContinualResults) -> str:
    rows = {row.memory: row for row in results.summaries if row.learner not in REFERENCES}
    made = [memory for memory in rows if is_distilled(memory)]
    told = [*made, *(memory for memory in rows if memory == "random")]
    if not told:
        return ""
    parts = [
        f"{memory} holds {rows[memory].memory_images:,} images in {size(rows[memory].memory_bytes)}"
        for memory in told
    ]
    text = f"After the last step {listed(parts)}"
    for memory in made:
        spent = results.distil_seconds.get(memory)
        known = f"making {memory} took {duration(spent)}"
        text += f"; {known if spent is not None else f'how long it took to make {memory} is unknown'}"
    return text + "."
