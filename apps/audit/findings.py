"""What an audit found, as a table, as sentences and as plain values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.audit.attack import FEWEST, Verdict, judge
from apps.audit.distances import COPY_QUANTILE, Copies

MADE_FROM, IN_SET = "it was made from", "in the set"
"""Who counts as a member: an image of the source that the set was made from, or a real image that it holds."""
COLUMNS = ("set", "members: images", "attack", "advantage", "AUC", "found at 1 %", "of each")


@dataclass(frozen=True)
class Finding:
    """One attack on one set: `members` says who counted as a member."""

    set_name: str
    members: str
    attack: str
    verdict: Verdict

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "set": self.set_name,
            "members": self.members,
            "attack": self.attack,
            "advantage": self.verdict.advantage.plain(),
            "auc": self.verdict.auc.plain(),
            "hits_at_1_percent": self.verdict.hits.plain(),
            "num_members": self.verdict.num_members,
            "num_non_members": self.verdict.num_non_members,
        }

    def cells(self) -> list[str]:
        """Of the table, see `COLUMNS`."""
        found = self.verdict
        counts = f"{found.num_members} / {found.num_non_members}"
        estimates = [found.advantage.text, found.auc.text, found.hits.text]
        return [self.set_name, self.members, self.attack, *estimates, counts]


@dataclass(frozen=True, eq=False)
class Scores:
    """Of one attack on one set, larger for members: of members, of non-members, and of the set's own real images."""

    members: np.ndarray
    non_members: np.ndarray
    own: np.ndarray | None = None


def judged(set_name: str, attacks: Mapping[str, Scores], *, seed: int) -> Iterator[Finding]:
    """A finding an attack, and a second one where the set holds real images; see `judge`."""
    for attack, scores in attacks.items():
        yield Finding(set_name, MADE_FROM, attack, judge(scores.members, scores.non_members, seed=seed))
    for attack, scores in attacks.items():
        if scores.own is not None and len(scores.own) >= FEWEST:
            yield Finding(set_name, IN_SET, attack, judge(scores.own, scores.non_members, seed=seed))


def copies_text(set_name: str, copies: Copies | None) -> str:
    """A sentence on near-copies."""
    if copies is None:
        return f"{set_name}: no class has two members, so nothing says how near a copy is."
    return (
        f"{set_name}: {copies.num_near} of {copies.num_images} images are near-copies of a member; the closest lies at"
        f" {copies.closest:.2f}, the median at {copies.median:.2f} of the median distance between neighbours among the"
        f" members, {100 * COPY_QUANTILE:.0f} % of whom are nearer than {copies.real_closest:.2f}."
    )
