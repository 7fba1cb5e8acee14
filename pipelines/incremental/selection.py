"""Which real images herding and k-center keep: a Ray task for every class, its answer on disk."""

import json
from typing import TYPE_CHECKING

from apps.continual.selection import KINDS
from pipelines.console.progress import Progress
from pipelines.incremental.remote import Choice, choose_rows
from pipelines.output.ownership import settings_hash
from pipelines.real_images import network_identity
from pipelines.workers.tasks import run_tasks

if TYPE_CHECKING:
    from pipelines.console.signals import StopSignal
    from pipelines.incremental.case import ContinualCase

_KINDS = tuple(kind for kind in KINDS if kind != "random")
"""Kinds that embed images; a random choice is made where it is needed."""


class Choices:
    """The rows of every class, in order of importance.

    Attributes:
        rows: by choice.
        failed: why a choice could not be made.
    """

    def __init__(self, case: "ContinualCase") -> None:
        self._case = case
        self.rows: dict[Choice, list[int]] = {}
        self.failed: dict[Choice, str] = {}

    def make(self, stop: "StopSignal") -> bool:
        """The rows of real images that need an embedding, for all classes at once; whether it was stopped."""
        choices = {choice: self._name(choice) for choice in self._choices()}
        self.rows |= {c: rows for c, name in choices.items() if (rows := self._stored(name)) is not None}
        left = [choice for choice in choices if choice not in self.rows]
        if not left:
            return False
        case, total, done = self._case, len(choices), len(choices) - len(left)
        with Progress("choosing", total, num_items=total, unit="classes", item="classes", done=done) as shown:

            def keep(choice: Choice, rows: list[int]) -> None:
                case.store.write_json(choices[choice], {"rows": rows})
                self.rows[choice] = rows
                shown.update(len(self.rows), items_done=len(self.rows))

            train = {choice.view: case.views.view(choice.view).train for choice in left}
            counts_K = case.real.train.per_class_counts()
            with stop.polling():
                outcome = run_tasks(
                    choose_rows,
                    left,
                    shared=(train, case.command.seed, case.command.distil_network, case.device_kind),
                    num_cpus=case.learner_size.cpus,
                    num_gpus=case.learner_size.gpus,
                    max_in_flight=case.learner_size.num_actors,
                    kind=lambda choice: (choice.kind, int(counts_K[choice.class_id])),
                    limits=case.limits,
                    on_result=keep,
                    stop=stop,
                )
        self.failed = {choice: failure.reason for choice, failure in outcome.failed.items()}
        return outcome.stopped

    def of(self, kind: str, view: str, class_id: int) -> Choice:
        """The choice that serves every class order."""
        return Choice(kind, view, class_id, self._case.plan.largest_quota(kind, class_id))

    def _choices(self) -> list[Choice]:
        plan, case = self._case.plan, self._case
        views = dict.fromkeys(case.views.name(order) for order in plan.streams)
        return [
            self.of(kind, view, class_id)
            for kind in plan.memories
            if kind in _KINDS
            for view in views
            for class_id in range(case.real.train.num_classes)
        ]

    def _name(self, choice: Choice) -> str:
        case = self._case
        key = {
            **vars(choice),
            "seed": case.command.seed,
            "embedding": network_identity(case.command.distil_network, case.real),
            "preprocess": case.views.digest(choice.view),
            "fingerprint": case.real.train.fingerprint,
            "device": case.device_kind,
        }
        return f"choices/{choice.kind}-{choice.view}-class{choice.class_id:03d}-{settings_hash(key)}.json"

    def _stored(self, name: str) -> list[int] | None:
        if not self._case.store.exists(name):
            return None
        try:
            return [int(row) for row in json.loads(self._case.store.read_bytes(name))["rows"]]
        except (ValueError, KeyError, TypeError):
            return None
