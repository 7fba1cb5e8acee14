"""What a comparison came to: a row a method and number of images, with the accuracy of every training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from apps.compare.pairing import Paired, paired
from apps.compare.published import Published
from atom.rivals import WITH_TEACHER, lost_to_random

RANDOM = "random"
"""The row that all others are compared with."""


@dataclass(frozen=True)
class Cost:
    """What a row took.

    Attributes:
        distil_s: seconds of all workers on the images, preparations included; None: unknown.
        shared_s: the part of it that other rows need as well, of other tables too, such as for the same experts.
        evaluate_s: seconds of all workers on the trainings that judge it.
        stored_bytes: of images and soft labels as a set's file holds them; of real images a byte a value.
        peak_bytes: the most memory that a worker process held while it worked at this row; None: unknown.
        device_peak_bytes: the most that it held on its GPU; None: none, or unknown.
    """

    distil_s: float | None = None
    shared_s: float = 0.0
    evaluate_s: float = 0.0
    stored_bytes: int = 0
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None


@dataclass(frozen=True)
class Entry:
    """A row: one set, or real images of equal storage, judged by all networks.

    Attributes:
        method: as tables call it.
        ipc: stored images a class.
        accuracies: test accuracy in percent by network and training seed.
        cost: see `Cost`.
        images: stored.
        training: what the set carries and was trained on by, in place of the common protocol.
        reason: why there is no accuracy, or not all; empty where there is.
        published: numbers of the same setting, by network.
        scores: balanced accuracy and area under the ROC curve by network, as evaluations have them; empty where the
            classes of the test part are even.
        where: name of its output within that of the comparison.
        settings: of the distillation, resolved.
        soft_labels: whether the set has soft labels, as random images with a teacher's have.
    """

    method: str
    ipc: int
    accuracies: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    images: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    published: Mapping[str, Published] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    where: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    soft_labels: bool = False

    def mean(self, network: str) -> float | None:
        """Over the trainings of a network; None where there are none."""
        values = self.accuracies.get(network)
        return fmean(values.values()) if values else None

    def std(self, network: str) -> float | None:
        """Standard deviation over trainings; None for fewer than two."""
        values = self.accuracies.get(network, {})
        return stdev(values.values()) if len(values) > 1 else None


@dataclass(frozen=True)
class Compared:
    """A whole comparison.

    Attributes:
        dataset: as people call it.
        networks: that judged, in the order of columns.
        entries: the rows.
        facts: what a reader needs to repeat it.
    """

    dataset: str
    networks: Sequence[str]
    entries: Sequence[Entry]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ipcs(self) -> list[int]:
        """Numbers of stored images a class, ascending: a table each."""
        return sorted({entry.ipc for entry in self.entries})

    def of(self, ipc: int) -> list[Entry]:
        """The rows of one table."""
        return [entry for entry in self.entries if entry.ipc == ipc]

    def random(self, ipc: int) -> Entry | None:
        """Random real images of a table."""
        return next((entry for entry in self.of(ipc) if entry.method == RANDOM), None)

    def best(self, ipc: int, network: str) -> Entry | None:
        """The row of the highest mean accuracy of a table and network, of those that no training is missing in.

        A mean over the trainings that were left when others diverged is no fair one.
        """
        most = max((len(entry.accuracies.get(network, {})) for entry in self.of(ipc)), default=0)
        known = [entry for entry in self.of(ipc) if most and len(entry.accuracies.get(network, {})) == most]
        return max(known, key=lambda entry: entry.mean(network) or 0.0, default=None)

    def against_random(self, entry: Entry, network: str) -> Paired | None:
        """Paired differences to random images; None for these themselves, and where there is no pair."""
        return _difference(entry, self.random(entry.ipc), network)

    def against_best(self, entry: Entry, network: str) -> Paired | None:
        """Paired differences to the best row of the table; None for that row itself."""
        return _difference(entry, self.best(entry.ipc, network), network)

    def lost(self, entry: Entry) -> str | None:
        """The sentence on the networks for which random images do better, see `atom.rivals.lost_to_random`.

        Those with a teacher's labels are a rival of soft labels alone.
        """
        rows = [
            {
                "method": other.method,
                "network": network,
                "mean": other.mean(network),
                "std": other.std(network),
                "n": len(other.accuracies.get(network, {})),
            }
            for other in self.of(entry.ipc)
            if entry.soft_labels or other.method != f"{RANDOM}{WITH_TEACHER}"
            for network in self.networks
        ]
        return lost_to_random(rows, entry.method)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-compatible values, the paired differences too."""
        return {
            "dataset": self.dataset,
            "networks": list(self.networks),
            "rows": [self._row(entry) for entry in self.entries],
            "facts": dict(self.facts),
        }

    def _row(self, entry: Entry) -> dict[str, Any]:
        judged = {}
        for network in self.networks:
            if not entry.accuracies.get(network):
                continue
            differences = {
                "minus_random": self.against_random(entry, network),
                "minus_best": self.against_best(entry, network),
            }
            published = entry.published.get(network)
            judged[network] = {
                "mean": entry.mean(network),
                "std": entry.std(network),
                "n": len(entry.accuracies[network]),
                "by_seed": {str(seed): value for seed, value in sorted(entry.accuracies[network].items())},
                **{name: asdict(one) for name, one in differences.items() if one is not None},
                **entry.scores.get(network, {}),
                **({"published": asdict(published)} if published else {}),
            }
        about = {"method": entry.method, "ipc": entry.ipc, "images": entry.images, "networks": judged}
        optional = {
            "training": dict(entry.training),
            "reason": entry.reason,
            "output": entry.where,
            "settings": dict(entry.settings),
        }
        return {
            **about,
            "cost": asdict(entry.cost),
            **{name: value for name, value in optional.items() if value},
        }


def _difference(entry: Entry, other: Entry | None, network: str) -> Paired | None:
    if other is None or other is entry:
        return None
    return paired(entry.accuracies.get(network, {}), other.accuracies.get(network, {}))


__all__ = ["RANDOM", "Compared", "Cost", "Entry"]
