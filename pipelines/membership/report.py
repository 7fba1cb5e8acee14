"""An audit on the screen, in MLflow and as JSON."""

from collections.abc import Sequence
from typing import Any

from apps.audit.findings import COLUMNS, IN_SET, MADE_FROM, copies_text
from atom.device import describe_hardware
from atom.settings import EvaluateSettings
from pipelines.console.command import say
from pipelines.console.progress import format_table, print_table
from pipelines.membership.attacks import Audit
from pipelines.membership.parts import Parts
from pipelines.membership.trainings import Losses
from pipelines.output.provenance import program
from pipelines.workers.remote import network_slug

_HOW_TO_READ = (
    "Advantage 0, AUC 0.5 and 0.01 found at 1 % are chance; in brackets 95 % intervals. An interval that holds chance"
    " is no proof that nothing is given away: stronger attacks exist."
)


def remarks(found: Audit, parts: Parts) -> list[str]:
    """What has to be said under the table."""
    copies = [copies_text(name, one) for name, one in found.copies.items()]
    return [_HOW_TO_READ, *([parts.caveat] if parts.caveat else []), *copies]


def print_audit(found: Audit, losses: Losses, parts: Parts, *, title: str) -> None:
    """The table on the screen, what failed, and what has to be said."""
    print_table(title, COLUMNS, [one.cells() for one in found.findings])
    if losses.failed:
        reasons = [(trial.name, failure.reason) for trial, failure in losses.failed.items()]
        print_table("Failed trainings", ["training", "reason"], reasons)
    for remark in remarks(found, parts):
        say(remark)


def note(found: Audit, parts: Parts, *, title: str) -> str:
    """The same for MLflow."""
    table = format_table(title, COLUMNS, [one.cells() for one in found.findings])
    return "\n\n".join([f"```\n{table}\n```", *remarks(found, parts)])


def metrics(found: Audit) -> dict[str, float]:
    """The numbers for MLflow: audit/SET/made_from/ATTACK/NUMBER, and in_set for the images that a coreset holds; with
    the bounds of their intervals, NUMBER_low and NUMBER_high."""
    place = {MADE_FROM: "made_from", IN_SET: "in_set"}
    return {
        f"audit/{network_slug(one.set_name)}/{place[one.members]}/{one.attack}/{name}{end}": value
        for one in found.findings
        for name, estimate in (
            ("advantage", one.verdict.advantage),
            ("auc", one.verdict.auc),
            ("hits", one.verdict.hits),
        )
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
        if value is not None
    }


def record(
    found: Audit,
    parts: Parts,
    *,
    network: str,
    settings: EvaluateSettings,
    programs: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The audit as plain values: `audit.json`, and what the set and its card keep; `programs` trained."""
    from atom.distilled import without_folders

    return {
        "non_members": "held-out training images" if parts.held_out else "test images",
        "caveat": parts.caveat,
        "network": without_folders(network),
        "epochs": settings.epochs,
        "trainings": found.trainings,
        "findings": [one.plain() for one in found.findings],
        "copies": {name: None if one is None else one.plain() for name, one in found.copies.items()},
        "hardware": describe_hardware(),
        # This one attacks; what earlier drivers trained it may have found.
        **program(),
        "earlier_programs": [one for one in programs if one != program()],
    }
