"""Which network a rung that trains takes next: Optuna's proposals, a draw, or the next of a list; none twice."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import optuna
from ray.tune.search import Searcher

from apps.nas.early import Report
from apps.nas.space import Space
from atom.streams import stream

MAX_REPEATS = 10
"""Proposals for one new network. Chosen: a sampler that names what it knows ten times running has nothing else in
mind, or names what is not there, and then an untried neighbour does."""

Sampler = Literal["tpe", "random", "grid"]
Point = dict[str, Any]


class Dimensions:
    """A space as Optuna sees it: one choice for every axis, or one among the names where networks have none in common.

    A sample, or a space within limits, lacks some of the combinations; `name_of` knows no network there.
    """

    def __init__(self, space: Space) -> None:
        axes = [dict(candidate.axes) for candidate in space.candidates]
        choices: dict[str, list[Any]] = {axis: [] for axis in axes[0]}
        for chosen in axes:
            for axis, choice in chosen.items():
                known = choices.setdefault(axis, [])
                if choice not in known:
                    known.append(choice)
        points = {tuple(chosen.items()) for chosen in axes}
        alike = all(list(chosen) == list(choices) for chosen in axes)
        if not choices or not alike or len(points) < len(axes):
            choices = {"network": list(space.names)}
            axes = [{"network": name} for name in space.names]
        self.choices: Mapping[str, Sequence[Any]] = choices
        self.points: Mapping[str, Point] = dict(zip(space.names, axes, strict=True))
        self._names = {tuple(point.items()): name for name, point in self.points.items()}

    @cached_property
    def distributions(self) -> dict[str, Any]:
        """As Optuna takes them."""
        return {
            axis: optuna.distributions.CategoricalDistribution(tuple(choices))
            for axis, choices in self.choices.items()
        }

    def name_of(self, point: Point) -> str | None:
        """The network at a point, None where there is none."""
        return self._names.get(tuple((axis, point[axis]) for axis in self.choices))


class Proposals(Searcher):
    """Proposes networks until so many have been tried, or no more are wanted; Ray Tune asks it, and the driver.

    What it proposes depends on what has come out so far alone. A network whose worker was lost comes back with `again`.

    Args:
        space: its networks; those of "grid" in the order in which they are tried.
        trials: networks to try.
        known: the reports that a trial of a network need not find anew; they go to the trial.
        seed: of the sampler.
        sampler: tpe: Optuna's tree-structured Parzen estimator; random: any order; grid: the space's.
        wanted: asked before every network; once it says no, none is proposed any more.
        room: how many networks may be under way now.
    """

    def __init__(
        self,
        space: Space,
        *,
        trials: int,
        known: Callable[[str], tuple[Report, ...]] = lambda network: (),
        seed: int = 0,
        sampler: Sampler = "tpe",
        wanted: Callable[[], bool] = lambda: True,
        room: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        super().__init__(metric="value", mode="max")
        self.trials = min(trials, len(space.names))
        self.values: dict[str, float] = {}
        self.failed: set[str] = set()
        self._known = known
        self._again: list[str] = []
        self._short: set[str] = set()
        self._running: dict[str, str] = {}
        self._dimensions = Dimensions(space)
        self._seed, self._wanted, self._room = seed, wanted, room
        places = stream(seed, "nas/search").permutation(len(space.names))
        self._order = list(space.names) if sampler == "grid" else [space.names[place] for place in places]
        self._ask_optuna = sampler == "tpe"

    @property
    def tried(self) -> int:
        """Networks that have come to an end, failed ones included."""
        return len(self.values) + len(self.failed)

    @property
    def under_way(self) -> int:
        """Networks being trained."""
        return len(self._running)

    @property
    def ended(self) -> bool:
        """Whether nothing is proposed any more, whatever is still under way."""
        return not self._again and (self.tried + len(self._running) >= self.trials or not self._wanted())

    # FINISHED is a string, which Searcher's own annotation forgets.
    def suggest(self, trial_id: str) -> Any:
        """The next network to train, None while that waits for those under way, or that there are no more."""
        if self.ended:
            return None if self._running else Searcher.FINISHED
        if len(self._running) >= max(1, self._room() - len(self._short)):
            return None
        network = self._again.pop(0) if self._again else self._next()
        self._running[trial_id] = network
        return {"network": network, "known": self._known(network)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take what a trial came to; without a result it counts as not tried until somebody says more."""
        network = self._running.pop(trial_id, None)
        if network is None or result is None or error:
            return
        self._short.discard(network)
        if result.get("failure"):
            self.failed.add(network)
        else:
            self.values[network] = float(result["value"])

    def again(self, network: str, *, short: bool = False) -> None:
        """Try a network once more, next; its worker was lost.

        Args:
            network: its name.
            short: memory ran out, so that one fewer is under way until it has got on.
        """
        self._again.insert(0, network)
        if short:
            self._short.add(network)

    def give_up(self, network: str) -> None:
        """Count a network as failed; it was lost too often."""
        self._short.discard(network)
        self.failed.add(network)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the table of results is what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""

    def _next(self) -> str:
        taken = {*self._running.values(), *self.failed, *self.values}
        left = [name for name in self._order if name not in taken]
        if not self._ask_optuna:
            return left[0]
        wished: Point = {}
        for repeat in range(MAX_REPEATS):
            wished = self._proposed(repeat)
            network = self._dimensions.name_of(wished)
            if network is not None and network not in taken:
                return network
        points = self._dimensions.points
        return min(left, key=lambda name: len(wished.items() - points[name].items()))

    def _proposed(self, repeat: int) -> Point:
        points, distributions = self._dimensions.points, self._dimensions.distributions
        number = self.tried + len(self._running)
        seed = int(stream(self._seed, "nas/search/ask", number, repeat).integers(2**31))
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        )
        study.add_trials(
            [
                optuna.create_trial(params=points[network], distributions=distributions, value=value)
                for network, value in self.values.items()
            ]
            + [
                optuna.create_trial(
                    params=points[network], distributions=distributions, state=optuna.trial.TrialState.RUNNING
                )
                for network in self._running.values()
            ]
        )
        return study.ask(distributions).params
