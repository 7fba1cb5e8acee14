"""The parts of a verdict on an architecture search, and their JSON form."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atom.errors import ArtifactError


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ProxyScores:
    """What one proxy says of each network.

    Attributes:
        name: such as "atom" or "parameters".
        scores: network -> one score a seed, larger is better; -inf ranks last, NaN means failed.
        images: stored images; 0 for scores without training, all for a proxy on the whole set.
        train_seconds: training and scoring, summed over networks and seeds.
        prepare_seconds: distillation or selection of the images; None where unknown.
    """

    name: str
    scores: Mapping[str, tuple[float, ...]]
    images: int
    train_seconds: float
    prepare_seconds: float | None = 0.0


@dataclass(frozen=True)
class Agreement:
    """Rank correlation with the truth over a subset: "all", "top 20 %" or "top 5 %" of the true ranking."""

    subset: str
    n: int
    kendall: Estimate
    spearman: Estimate


@dataclass(frozen=True)
class TopK:
    """What the proxy's k best are worth: share in the true top k, best true rank, regret in points."""

    k: int
    precision: Estimate
    best_rank: Estimate
    regret: Estimate


@dataclass(frozen=True)
class ProxyVerdict:
    """One proxy against the truth, on the `n` networks that have both.

    `pick` has the largest mean score, the first of several in the order of the truth. Without a network in
    common it is empty, and its truth NaN.
    """

    name: str
    n: int
    num_seeds: int
    agreement: tuple[Agreement, ...]
    top: tuple[TopK, ...]
    images: int
    train_seconds: float
    prepare_seconds: float | None
    pick: str
    pick_truth: float
    mean_scores: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """A coefficient ("kendall" or "spearman") of the first proxy minus that of the second, same networks."""

    first: str
    second: str
    subset: str
    coefficient: str
    n: int
    estimate: Estimate
    p: float | None


@dataclass(frozen=True)
class Ceiling:
    """Mean rank correlation between two seeds of the reference, over all networks and over the true top 20 %; None
    with one seed.
    """

    num_seeds: int
    kendall: float | None
    spearman: float | None
    kendall_top: float | None = None
    spearman_top: float | None = None


@dataclass(frozen=True)
class Fit:
    """How well a regression on the ranks of proxies predicts the reference, see `apps.nas.fitted`.

    Attributes:
        n: networks that it was fitted on.
        folds: into how many parts they were cut, each of which was predicted from the others.
        rmse: root mean square error of these predictions, in points.
        rmse_of_mean: that of predicting the mean of the other parts.
        weights: points of accuracy for one standard deviation of a proxy's ranks, by proxy, in the fit of all.
    """

    n: int
    folds: int
    rmse: float
    rmse_of_mean: float
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """All that is known of the proxies.

    Truth and its standard deviation, 0 with one seed, are over seeds, by network, in percent.
    """

    level: float
    resamples: int
    truth: Mapping[str, float]
    truth_std: Mapping[str, float | None]
    reference_seconds: float
    reference_name: str
    ceiling: Ceiling
    proxies: tuple[ProxyVerdict, ...]
    differences: tuple[Difference, ...]
    fit: Fit | None = None


def to_dict(verdict: Verdict) -> dict[str, Any]:
    """The verdict as dictionaries, lists, text, numbers and None only; NaN and infinity become None."""
    return _plain(dataclasses.asdict(verdict))


def from_dict(values: Mapping[str, Any]) -> Verdict:
    """The verdict that `to_dict` wrote, also after a way through JSON.

    A mean score of None is -inf again, the only infinity a score can have, and a `pick_truth` of None is NaN.

    Raises:
        ArtifactError: a field is missing or unknown.
    """
    try:
        parts: dict[str, Any] = {
            "ceiling": Ceiling(**values["ceiling"]),
            "proxies": tuple(_proxy(proxy) for proxy in values["proxies"]),
            "differences": tuple(Difference(**_estimates(row)) for row in values["differences"]),
            "fit": Fit(**values["fit"]) if values.get("fit") else None,
        }
        return Verdict(**{**values, **parts})
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the stored verdict is damaged or of another version ({error}); judge the scores again."
        ) from error


def _proxy(values: Mapping[str, Any]) -> ProxyVerdict:
    scores = values["mean_scores"].items()
    parts: dict[str, Any] = {
        "agreement": tuple(Agreement(**_estimates(row)) for row in values["agreement"]),
        "top": tuple(TopK(**_estimates(row)) for row in values["top"]),
        "pick_truth": math.nan if values["pick_truth"] is None else values["pick_truth"],
        "mean_scores": {name: -math.inf if score is None else score for name, score in scores},
    }
    return ProxyVerdict(**{**values, **parts})


def _estimates(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: Estimate(**value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
