"""Which network `--mode search` tries next: Optuna's proposals, but no network twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from apps.nas.space import Space
from atom.streams import stream

MAX_REPEATS = 10
"""Answers out of the table for one new network. Chosen: a sampler that proposes what it knows ten times running has
nothing else in mind, and then any untried network does."""

Point = dict[str, Any]


class Dimensions:
    """A space as Optuna sees it: one choice for every axis, or one among the names.

    Axes serve where the networks are all their combinations; a sample of them, or a user's own, has gaps that a
    sampler would run into.
    """

    def __init__(self, space: Space) -> None:
        axes = [dict(candidate.axes) for candidate in space.candidates]
        choices: dict[str, list[Any]] = {axis: [] for axis in axes[0]}
        for chosen in axes:
            for axis, choice in chosen.items():
                known = choices.setdefault(axis, [])
                if choice not in known:
                    known.append(choice)
        combinations = 1
        for known in choices.values():
            combinations *= len(known)
        points = {tuple(chosen.items()) for chosen in axes}
        complete = all(list(chosen) == list(choices) for chosen in axes)
        if not choices or not complete or not combinations == len(points) == len(axes):
            choices = {"network": list(space.names)}
            axes = [{"network": name} for name in space.names]
        self.choices: Mapping[str, Sequence[Any]] = choices
        self.points: Mapping[str, Point] = dict(zip(space.names, axes, strict=True))
        self._names = {tuple(point.items()): name for name, point in self.points.items()}

    def name_of(self, point: Point) -> str:
        """The network at a point."""
        return self._names[tuple((axis, point[axis]) for axis in self.choices)]


@dataclass(frozen=True)
class _Trial:
    """A network being tried, and Optuna's name for the question that it answers, if Optuna asked."""

    network: str
    asked: str | None


class Proposals(Searcher):
    """Proposes networks until so many have been tried; a class of Ray Tune's, used by it and by the driver.

    Optuna is told of every end, that of an earlier run included. What it proposes again is answered at once with
    what is known. A network whose worker was lost comes back with `again`.

    Args:
        space: its networks.
        trials: networks to try, those known included.
        known: scores at the end of earlier trials, by network.
        first: networks to try before Optuna is asked.
        seed: of Optuna's sampler and of the order of networks that it leaves.
    """

    def __init__(
        self, space: Space, *, trials: int, known: Mapping[str, float], first: Sequence[str], seed: int
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.trials = min(trials, len(space.names))
        self.scores: dict[str, float] = dict(known)
        self.failed: set[str] = set()
        self._first = list(first)
        self._running: dict[str, _Trial] = {}
        self._dimensions = Dimensions(space)
        # Another start of the driver must not begin with the very networks the last one began with.
        rng = stream(seed, "nas/search", len(known))
        self._order = [space.names[place] for place in rng.permutation(len(space.names))]
        distributions: dict[str, Any] = {
            axis: optuna.distributions.CategoricalDistribution(tuple(choices))
            for axis, choices in self._dimensions.choices.items()
        }
        self._optuna = OptunaSearch(
            distributions,
            metric="score",
            mode="max",
            seed=int(rng.integers(2**31)),
            points_to_evaluate=[self._dimensions.points[network] for network in known] or None,
            evaluated_rewards=list(known.values()) or None,
        )

    @property
    def tried(self) -> int:
        """Networks that have come to an end, failed ones included."""
        return len(self.scores) + len(self.failed)

    # FINISHED is a string, which Searcher's own annotation forgets.
    def suggest(self, trial_id: str) -> Any:
        """The next network to train, None while that depends on those under way, or that there are no more."""
        if self.tried + len(self._running) >= self.trials:
            return None if self._running else Searcher.FINISHED
        trial = self._next(trial_id)
        self._running[trial_id] = trial
        return {"network": trial.network}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take what a trial came to; without a result it counts as not tried until somebody says more."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        score = None if error or result is None or result.get("failure") else float(result["score"])
        if score is not None:
            self.scores[trial.network] = score
        elif result is not None:
            self.failed.add(trial.network)
        if trial.asked is not None:
            self._tell(trial.asked, score)
        elif score is not None:
            self._optuna.add_evaluated_point(self._dimensions.points[trial.network], score)

    def again(self, network: str) -> None:
        """Try a network once more, next; its worker was lost."""
        self._first.insert(0, network)

    def give_up(self, network: str) -> None:
        """Count a network as failed; it was lost too often."""
        self.failed.add(network)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the table of results is what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""

    def _next(self, trial_id: str) -> _Trial:
        if self._first:
            return _Trial(self._first.pop(0), None)
        under_way = {trial.network for trial in self._running.values()}
        for repeat in range(MAX_REPEATS):
            asked = f"{trial_id}/{repeat}"
            network = self._dimensions.name_of(self._optuna.suggest(asked) or {})
            if network not in under_way | self.failed | self.scores.keys():
                return _Trial(network, asked)
            self._tell(asked, self.scores.get(network))
        left = under_way | self.failed | self.scores.keys()
        return _Trial(next(name for name in self._order if name not in left), None)

    def _tell(self, asked: str, score: float | None) -> None:
        self._optuna.on_trial_complete(
            asked, None if score is None else {"score": score}, error=score is None
        )
