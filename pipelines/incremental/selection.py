"""Which real images herding and k-center keep: a Ray task for every class, its answer on disk."""

import json
from typing import TYPE_CHECKING

from apps.continual.selection import KINDS
from pipelines.console.progress import Progress
from pipelines.incremental.remote import Selection, select_rows
from pipelines.output.ownership import settings_hash
from pipelines.real_images import network_identity
from pipelines.workers.tasks import run_tasks

if TYPE_CHECKING:
    from pipelines.console.signals import StopSignal
    from pipelines.incremental.case import ContinualCase

_KINDS = tuple(kind for kind in KINDS if kind != "random")
"""Kinds that embed images; a random choice is made where it is needed."""


class Selections:
    """The rows of every class, in order of importance.

    Attributes:
        rows: by selection.
        failed: why one could not be made.
    """

    def __init__(self, case: "ContinualCase") -> None:
        self._case = case
        self.rows: dict[Selection, list[int]] = {}
        self.failed: dict[Selection, str] = {}

    def make(self, stop: "StopSignal") -> bool:
        """The rows of real images that need an embedding, for all classes at once; whether it was stopped."""
        selections = {selection: self._name(selection) for selection in self._selections()}
        self.rows |= {c: rows for c, name in selections.items() if (rows := self._stored(name)) is not None}
        left = [selection for selection in selections if selection not in self.rows]
        if not left:
            return False
        case, total, done = self._case, len(selections), len(selections) - len(left)
        with Progress("choosing", total, num_items=total, unit="classes", item="classes", done=done) as shown:

            def keep(selection: Selection, rows: list[int]) -> None:
                case.store.write_json(selections[selection], {"rows": rows})
                self.rows[selection] = rows
                shown.update(len(self.rows), items_done=len(self.rows))

            names = {selection.preprocessing for selection in left}
            train = {name: case.preprocessed.images(name).train for name in names}
            with stop.polling():
                outcome = run_tasks(
                    select_rows,
                    left,
                    shared=(train, case.command.distill.seed, case.command.distil_network, case.device_kind),
                    size=case.learner_size,
                    kind=lambda selection: (selection.kind, case.plan.counts[selection.lot]),
                    limits=case.limits,
                    on_result=keep,
                    stop=stop,
                )
        self.failed = {selection: failure.reason for selection, failure in outcome.failed.items()}
        return outcome.stopped

    def of(self, kind: str, preprocessing: str, lot: int) -> Selection:
        """The selection that serves every class order."""
        plan = self._case.plan
        named = "" if plan.lots.plain else plan.lots.name(lot)
        return Selection(kind, preprocessing, lot, plan.largest_quota(kind, lot), named)

    def _selections(self) -> list[Selection]:
        plan, case = self._case.plan, self._case
        preprocessings = dict.fromkeys(case.preprocessed.name(order) for order in plan.streams)
        found = [
            self.of(kind, preprocessing, lot)
            for kind in plan.memories
            if kind in _KINDS
            for preprocessing in preprocessings
            for lot in plan.counts
        ]
        return [selection for selection in found if selection.number]

    def _name(self, selection: Selection) -> str:
        case = self._case
        key = {
            "kind": selection.kind,
            "view": selection.preprocessing,
            "class_id": selection.lot,
            **case.lots.key,
            "number": selection.number,
            "seed": case.command.distill.seed,
            "embedding": network_identity(case.command.distil_network, case.real),
            "preprocess": case.preprocessed.digest(selection.preprocessing),
            "fingerprint": case.real.train.fingerprint,
            "device": case.device_kind,
        }
        name = f"{selection.kind}-{selection.preprocessing}-class{selection.lot:03d}"
        return f"choices/{name}-{settings_hash(key)}.json"

    def _stored(self, name: str) -> list[int] | None:
        if not self._case.store.exists(name):
            return None
        try:
            return [int(row) for row in json.loads(self._case.store.read_bytes(name))["rows"]]
        except (ValueError, KeyError, TypeError):
            return None
