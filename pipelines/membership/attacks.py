"""From sets, images and losses to findings: each image scored by how near it is, and by how well it is known."""

# N images, T images asked about, C channels, H height, W width, D features

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from apps.audit.distances import Copies, find_copies, nearest_of_class
from apps.audit.findings import Finding, Scores, judged
from apps.audit.sample import balanced_rows
from atom.device import use_threads
from atom.embedding import THREADS, embed
from atom.preprocess import Preprocess
from pipelines.membership.parts import Parts
from pipelines.membership.trainings import AuditedSet, Losses


@dataclass(frozen=True, eq=False)
class Images:
    """Real images in the space of the set.

    Attributes:
        members, member_labels: all images that it was made from.
        asked, asked_labels: those that are attacked, members first.
        rows: of these members, in `members`.
    """

    members: np.ndarray
    member_labels: np.ndarray
    asked: np.ndarray
    asked_labels: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, parts: Parts, preprocess: Preprocess, *, most: int, seed: int) -> Self:
        """Of members and non-members at most `most` each, drawn by `balanced_rows`."""
        labels = (parts.members.labels, parts.non_members.labels)
        chosen = balanced_rows(labels, num_classes=parts.members.num_classes, most=most, seed=seed)
        members = preprocess.apply(parts.members.checked()).numpy()
        others = preprocess.apply(parts.non_members.checked()[chosen[1]]).numpy()
        asked_labels = np.concatenate([labels[0][chosen[0]], labels[1][chosen[1]]])
        return cls(members, labels[0], np.concatenate([members[chosen[0]], others]), asked_labels, chosen[0])


@dataclass
class Audit:
    """What was found: attacks on every set, near-copies by set, and trainings behind the losses by set."""

    findings: list[Finding] = field(default_factory=list)
    copies: dict[str, Copies | None] = field(default_factory=dict)
    trainings: dict[str, int] = field(default_factory=dict)


def attack(sets: Sequence[AuditedSet], images: Images, losses: Losses, *, seed: int) -> Audit:
    """Score and judge; on the CPU and a fixed number of threads, so that every machine scores alike.

    Scores, larger for members: less the distance to the set's nearest image of the class, of pixels in the set's own
    space and of features of one random network; and less the loss, its mean over trainings.
    """
    found = Audit()
    count = len(images.rows)
    with use_threads(THREADS):
        asked = torch.from_numpy(images.asked)
        members = torch.from_numpy(images.members)
        num_classes = int(images.member_labels.max()) + 1
        features = embed(asked, num_classes=num_classes, seed=seed)
        between_P = nearest_of_class(
            asked[:count], images.asked_labels[:count], members, images.member_labels, but_itself=True
        )
        for one in sets:
            name, own = one.small.name, torch.from_numpy(one.images)
            inside = embed(own, num_classes=num_classes, seed=seed)
            attacks = {}
            for space, real, held in (("pixels", asked, own), ("features", features, inside)):
                scores_T = -nearest_of_class(real, images.asked_labels, held, one.labels_N)
                # A real image of the set is its own nearest.
                attacks[space] = _scores(scores_T, count, np.zeros(len(own)) if one.holds_real else None)
            if trained := losses.found[name]:
                # float64: the order of trainings must not show.
                scores_T = -np.mean(np.stack(trained).astype(np.float64), axis=0)
                attacks["loss"] = _scores(
                    scores_T[: len(asked)], count, scores_T[len(asked) :] if one.holds_real else None
                )
            found.findings += judged(name, attacks, seed=seed)
            to_members_N = nearest_of_class(own, one.labels_N, members, images.member_labels)
            found.copies[name] = find_copies(to_members_N, between_P)
            found.trainings[name] = len(trained)
    return found


def _scores(scores_T: np.ndarray, num_members: int, own: np.ndarray | None) -> Scores:
    return Scores(scores_T[:num_members], scores_T[num_members:], own)
