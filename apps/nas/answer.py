"""What a user of a search wanted: which network to take, in sentences, the first of which says it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from apps.nas.latency import BATCH
from apps.page import duration, listed

LEVEL = 0.05
"""Two networks differ clearly where Welch's test of their validation accuracies has a smaller p. Chosen, as usual."""
FEWEST = 5
"""With fewer networks at the top of the ladder nothing is claimed of the space. Chosen."""
_CHEAPER = 1.5
"""So many times fewer multiply-adds are worth a word. Chosen."""


@dataclass(frozen=True)
class Choice:
    """A network that may be taken.

    Attributes:
        network: its name.
        validation: mean accuracy in percent over `n` trainings, by which it was chosen.
        validation_std: None for one training.
        test, test_std: the same on test images; None where it was not trained in full.
        n: trainings.
        parameters, multiply_adds, latency_ms: its cost; None where unknown.
    """

    network: str
    validation: float
    validation_std: float | None = None
    test: float | None = None
    test_std: float | None = None
    n: int = 1
    parameters: int | None = None
    multiply_adds: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Cost:
    """Worker-seconds.

    Attributes:
        search: of scores and trainings on the ladder.
        sets: of the sets that it used, before the first network; None where that is not known.
        retrain: of the trainings in full.
        of: what this is the cost of, where it is not that of all.
    """

    search: float
    sets: float | None = 0.0
    retrain: float = 0.0
    of: str = ""


def answer(
    choices: Sequence[Choice], cost: Cost, *, finalists: int, networks: int, decided_by: str
) -> list[str]:
    """Which network to take, what is as good, how sure that is, and what it cost; the first sentence says the first.

    Args:
        choices: trained in full, or else those at the top of the ladder; the one to take first.
        cost: of finding it.
        finalists: networks that were compared at the end.
        networks: that there are in the space.
        decided_by: the rung or proxy that chose those that were trained in full.
    """
    if not choices:
        return ["No network reached the end, so there is none to take.", _told_cost(cost)]
    first, others = choices[0], choices[1:]
    return [
        sentence
        for sentence in (
            _take(first, decided_by=decided_by, finalists=finalists),
            _rivals(first, others),
            _confidence(first, others, finalists=finalists, networks=networks, decided_by=decided_by),
            _told_cost(cost),
        )
        if sentence
    ]


def differ(one: Choice, other: Choice) -> bool | None:
    """Whether the validation accuracies of two networks differ clearly; None where that cannot be told.

    By Welch's test over trainings; one training has no spread.
    """
    if one.validation_std is None or other.validation_std is None:
        return None
    if one.validation_std == other.validation_std == 0.0:
        return one.validation != other.validation
    found = stats.ttest_ind_from_stats(
        one.validation,
        one.validation_std,
        one.n,
        other.validation,
        other.validation_std,
        other.n,
        equal_var=False,
    )
    return bool(found.pvalue < LEVEL)


def front(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other one beats: none is as accurate and as cheap, and better in one of both; cheapest first.

    Cheap is in milliseconds where all are known, else in multiply-adds; a network of unknown cost is on no front.
    """
    timed = all(choice.latency_ms is not None for choice in choices)

    def price(choice: Choice) -> float:
        known = choice.latency_ms if timed else choice.multiply_adds
        return math.inf if known is None else float(known)

    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (price(c), -c.validation, c.network)):
        if math.isfinite(price(choice)) and (not found or choice.validation > found[-1].validation):
            found.append(choice)
    return found


def told_costs(choice: Choice) -> str:
    """Parameters, multiply-adds and milliseconds, as far as they are known."""
    told = []
    if choice.parameters is not None:
        told.append(f"{choice.parameters:,} parameters")
    if choice.multiply_adds is not None:
        told.append(f"{choice.multiply_adds / 1e6:.3g} M multiply-adds")
    if choice.latency_ms is not None:
        told.append(f"{choice.latency_ms:.3g} ms for {'an image' if BATCH == 1 else f'{BATCH} images'}")
    return ", ".join(told) or "its cost is unknown"


def accuracy(mean: float, std: float | None) -> str:
    """Such as "87.0 ± 0.8 %"."""
    return f"{mean:.1f} %" if std is None else f"{mean:.1f} ± {std:.1f} %"


def _take(first: Choice, *, decided_by: str, finalists: int) -> str:
    if first.test is None:
        flattered = (
            f", flattered by being the best of {finalists} on the same images" if finalists > 1 else ""
        )
        return (
            f"Take {first.network}: {first.validation:.1f} % of the validation images at {decided_by} (one training"
            f"{flattered}), {told_costs(first)}."
        )
    trainings = f"{first.n} trainings" if first.n > 1 else "one training"
    right = accuracy(first.test, first.test_std)
    return f"Take {first.network}: {right} of the test images ({trainings}), {told_costs(first)}."


def _rivals(first: Choice, others: Sequence[Choice]) -> str:
    equal = [other for other in others if _as_good(first, other)]
    told = [f"{other.network} ({_told_accuracy(other)}{_cheaper(first, other)})" for other in equal]
    if not told:
        return ""
    are = "is as good within noise" if len(told) == 1 else "are as good within noise"
    return f"{listed(told)} {are}."


def _as_good(first: Choice, other: Choice) -> bool:
    """Whether the difference is within its standard error; what merely is not clearly worse may well be worse."""
    if first.validation_std is None or other.validation_std is None:
        return False
    error = math.hypot(first.validation_std / math.sqrt(first.n), other.validation_std / math.sqrt(other.n))
    return first.validation - other.validation <= error


def _told_accuracy(choice: Choice) -> str:
    return (
        accuracy(choice.validation, choice.validation_std)
        if choice.test is None
        else accuracy(choice.test, choice.test_std)
    )


def _cheaper(first: Choice, other: Choice) -> str:
    if first.multiply_adds is None or other.multiply_adds is None or not other.multiply_adds:
        return ""
    times = first.multiply_adds / other.multiply_adds
    return f", {times:.2g} times cheaper in multiply-adds" if times >= _CHEAPER else ""


def _confidence(
    first: Choice, others: Sequence[Choice], *, finalists: int, networks: int, decided_by: str
) -> str:
    told = []
    told_apart = [apart for other in others if (apart := differ(first, other)) is not None]
    if first.test is None or not told_apart:
        told.append(
            "how it compares with the next best is not known: that takes two networks trained twice in full"
        )
    elif any(told_apart):
        told.append(
            f"it is clearly ahead of {sum(told_apart)} of the {len(told_apart)} others trained in full (Welch's"
            f" test at {100 * LEVEL:g} %)"
        )
    else:
        told.append(
            f"the {len(told_apart) + 1} networks trained in full are not clearly apart (Welch's test at"
            f" {100 * LEVEL:g} %), so the choice among them is mostly noise"
        )
    if finalists < FEWEST:
        told.append(
            f"no claim that it is the best of {networks:,}: {finalists} came to {decided_by}, and that takes {FEWEST}"
        )
    elif finalists == networks:
        told.append(f"all {networks:,} networks were compared by {decided_by} alone")
    else:
        told.append(
            f"of {networks:,} networks {finalists} came to {decided_by}, and a better one may have been left out"
        )
    return f"Confidence: {'; '.join(told)}."


def _told_cost(cost: Cost) -> str:
    total = cost.search + (cost.sets or 0.0) + cost.retrain
    # A coreset takes milliseconds, which nobody wants to read of.
    parts = [f"{duration(cost.sets)} the set"] if cost.sets is not None and cost.sets >= 1 else []
    if cost.retrain:
        parts.append(f"{duration(cost.retrain)} the trainings in full")
    unknown = "" if cost.sets is not None else ", the making of the set, which is not known, aside"
    told = f"{', ' + listed(parts) + ' of them' if parts else ''}{unknown}"
    return f"Cost{' ' + cost.of if cost.of else ''}: {duration(total)} of workers{told}."
