"""Rank the networks of a search space by training each on a distilled set, and say how far to trust the ranking.

python pipelines/nas.py --space small --sample 24 --reference whole
ray job submit --working-dir . -- python pipelines/nas.py --set /srv/atom/c10/set --output /srv/atom/nas
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from atom.errors import ConfigError
from pipelines.console.command import EXIT_FAILED, output_location, run_command, say, stopped
from pipelines.console.commands import DataSettings, DistillCommand, NasCommand, NasSettings

if TYPE_CHECKING:
    from apps.nas.ladder import Ladder
    from atom.distilled import DistilledSet
    from pipelines.architecture.case import NasCase
    from pipelines.architecture.winner import Winners
    from pipelines.console.signals import StopSignal
    from pipelines.output.store import Store
    from pipelines.tracking import Tracker

OWN_SET = "distilled"
"""Directory of the output in which a set is distilled when none is given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(NasCommand, search, argv)


def search(command: NasCommand) -> int:
    """Load, score, judge, report; see `run_command` for what it returns."""
    from apps.nas.ladder import parse_ladder
    from apps.nas.proxies import DISTILLED, FITTED, WHOLE, check_names, sources, with_members
    from pipelines.architecture.building import build_space
    from pipelines.architecture.case import NasCase
    from pipelines.architecture.own_proxies import own_digests
    from pipelines.architecture.plan import plan
    from pipelines.real_images import load_real
    from pipelines.session import Session
    from pipelines.sets import real_source

    command = command.shrunk() if command.smoke else command
    check_names(command.nas.proxies)
    searches = command.nas.mode == "search"
    if not searches:
        command = command.changed(proxies=with_members(command.nas.proxies))
    if searches and command.nas.reference == WHOLE:
        raise ConfigError(
            "--reference whole: --mode search trains no reference; pass a table, none, or --mode rank, and --retrain"
            " to train the best networks on the whole set."
        )
    if FITTED in command.nas.proxies and command.nas.reference == "none" and WHOLE not in command.nas.proxies:
        raise ConfigError(
            f"--proxies {FITTED}: learns from networks trained in full; pass --reference whole, or a table of them."
        )
    for flag in ("ladder", "budget_minutes", "search_trials", "max_latency_ms", "optuna_storage"):
        if not searches and getattr(command.nas, flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')}: is for --mode search; pass that too, or leave it out."
            )
    ladder = parse_ladder(command.nas.ladder) if command.nas.ladder else None
    if searches:
        check_search(command, ladder)
    if command.nas.reference == WHOLE and WHOLE not in command.nas.proxies:
        command = command.changed(proxies=(*command.nas.proxies, WHOLE))
    asked = (ladder.proxies if ladder else ()) if searches else command.nas.proxies
    uses_sets = DISTILLED in sources(asked)
    if command.set and not uses_sets:
        flag, name = ("--ladder", "distilled:50") if searches else ("--proxies", "distilled")
        raise ConfigError(f"--set: nothing uses it; add {name} to {flag}, or leave --set out.")
    with given_sets(command) as given:
        data = command.data
        if given:
            data = real_source(given[0][0], command.set[0], data)
        elif not data.dataset:
            data = data.model_copy(update={"dataset": "digits"})
        real = load_real(data, smoke=command.smoke, given=given[0][0] if given else None)
        # What is wrong with the input is said before Ray starts, but a user's code never runs in this process.
        early = None if ":" in command.nas.space else plan(command, given, real)
        output_location(command, "nas")
        with Session(command) as session:
            limits = command.cluster.limits()
            named = (ladder.order if ladder else ()) if searches else command.nas.proxies
            own = own_digests(named, limits=limits)
            # Limits of size come before a sample, and want every network built.
            limited = command.nas.max_parameters or command.nas.max_multiply_adds
            build = partial(build_space, limits=limits, number=None if limited else command.nas.sample)
            decided = replace(early or plan(command, given, real, load=build), own_proxies=own)
            name = f"{'search' if command.nas.mode == 'search' else 'rank'}-{real.name}-{decided.space_name}"
            location = output_location(command, f"nas-{name}")
            size, device_kind = session.workers(
                threads=1, num_units=decided.num_units, memory=command.nas.memory_per_actor or 0.0
            )
            identity = {
                "train": real.train.fingerprint,
                "validation": real.validation.fingerprint if real.validation else None,
                "device": device_kind,
            }
            shown = decided.shown(command, identity)
            store = session.take(location, identity, size=size, shown=shown, notes=on_weights(command))
            if not given and uses_sets:
                code, given = distil_first(command, data, store, location)
                if code:
                    return code
            case = NasCase(command, decided, given, real, store, size, device_kind)
            with case.tracker(name) as tracker:
                return run(case, tracker, session.stop)


def check_search(command: NasCommand, ladder: "Ladder | None") -> None:
    """Refuse what a search would not heed.

    Raises:
        ConfigError: saying what to pass instead.
    """
    if command.nas.proxies != NasSettings().proxies:
        raise ConfigError(
            "--proxies: ranks networks, and --mode search has them climb; pass --ladder, such as --ladder random:50"
            " whole:2 whole:10."
        )
    if ladder is None:
        return
    if ladder.order and command.nas.sampler != NasSettings().sampler:
        raise ConfigError(
            f"--sampler {command.nas.sampler}: the rung {'+'.join(ladder.order)} says which networks are trained first;"
            " leave one of the two out."
        )
    if ladder.num_sets > max(1, len(command.set)):
        raise ConfigError(
            f"--ladder distilled-{ladder.num_sets}: --set names {len(command.set)} sets; name {ladder.num_sets}."
        )


def on_weights(command: NasCommand) -> list[str]:
    """A note on the weights that a user's own networks begin with."""
    if ":" not in command.nas.space:
        return []
    kept = "those that your functions return" if command.evaluate.initial_weights == "kept" else "random"
    return [f"the weights that your networks begin with are {kept} (--initial-weights)."]


def run(case: "NasCase", tracker: "Tracker", stop: "StopSignal") -> int:
    """Everything after the decisions; returns the exit code."""
    from pipelines.architecture.rank import rank
    from pipelines.architecture.report import publish
    from pipelines.architecture.search import search_best
    from pipelines.architecture.search_report import publish_search
    from pipelines.architecture.winner import log_winner, ranked, retrain

    case.log_inputs(tracker)
    if case.searches:
        found = search_best(case, stop)
        best, ended, tell = found.finalists(case), found.stopped, partial(publish_search, case, found)
    else:
        scored = rank(case, stop)
        best, ended, tell = ranked(case, scored), scored.stopped, partial(publish, case, scored)
    if ended:
        return stopped(tracker, stop.signal_name)
    failures, winners = tell(None, tracker), None
    if case.retrains:
        # Only now: whatever becomes of the long trainings, the scores are told.
        winners = retrain(case, best, stop)
        if winners.stopped:
            return stopped(tracker, stop.signal_name)
        failures = tell(winners, tracker)
        if winners.directory:
            log_winner(case, tracker, stop)
    if case.searches and not best:
        failures = failures or 1
    if failures:
        reason = f"{failures} scores failed" if best else "no network reached the end"
        tracker.mark("FAILED", reason=reason)
    say(case.store.where("report.html"))
    if case.command.nas.json_:
        say(json.dumps(told(case, winners, best)))
    return EXIT_FAILED if failures else 0


def told(case: "NasCase", winners: "Winners | None", best: "Mapping[str, float]") -> dict[str, object]:
    """For a program that reads the last line: the network to take, and where everything lies."""
    rows = [row for row in winners.rows if row["delivered"]] if winners is not None else []
    pick = {"network": next(iter(best)), "proxy score": next(iter(best.values()))} if best else {}
    return {
        "report": case.store.where("report.html"),
        "winner": winners.directory if winners is not None else "",
        "decided_by": case.deciding,
        **(rows[0] if rows else pick),
    }


@contextmanager
def given_sets(command: NasCommand) -> Iterator[list[tuple["DistilledSet", float | None]]]:
    """The sets that --set names, each with the seconds that it took to distil, None where unknown.

    Raises:
        ConfigError, ArtifactError, StoreError: one cannot be found or read.
    """
    from atom.distilled import DistilledSet
    from pipelines.sets import distil_seconds, local_set

    with ExitStack() as stack:
        found = []
        for location in command.set:
            directory = stack.enter_context(local_set(location, command.tracking.tracking_uri))
            distilled = DistilledSet.load(directory)
            found.append((distilled, distil_seconds(distilled, directory)))
        yield found


def distil_first(
    command: NasCommand, data: DataSettings, store: "Store", location: str
) -> tuple[int, list[tuple["DistilledSet", float | None]]]:
    """A set distilled from the training part of this very run, by atom-distill; exit code and the set."""
    from atom.distilled import DistilledSet
    from pipelines.distill import distill
    from pipelines.output.records import DISTILL_WORKER_S, times
    from pipelines.output.store import Store
    from pipelines.sets import local_set
    from pipelines.tracking import default_tracking_uri

    output = f"{location.rstrip('/')}/{OWN_SET}"
    asked = DistillCommand(data=data, cluster=command.cluster).changed(
        ipc=command.nas.ipc,
        iterations=command.nas.iterations,
        seed=command.seed,
        baselines=(),
        eval_seeds=0,
        output=output,
        smoke=command.smoke,
        tracking_uri=command.tracking.tracking_uri or default_tracking_uri(store.local_path),
    )
    say("No --set: distilling one first")
    code = distill(asked)
    if code:
        return code, []
    with local_set(output, None) as directory:
        return 0, [(DistilledSet.load(directory), times(Store.open(output)).get(DISTILL_WORKER_S))]


if __name__ == "__main__":
    sys.exit(main())
