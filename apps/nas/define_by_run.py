"""A user's space given by Optuna's define-by-run: a function that asks a trial for parameters and returns a builder.

Every combination of their values is one network; which parameters there are may depend on the values of others.
Optuna's own BruteForceSampler finds the same ones, but reads all earlier trials at every question: 800 networks of six
parameters took it 8 s, and half of them 1.6 s.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna import TrialPruned
from optuna.trial import FixedTrial

from atom.errors import ConfigError

MAX_COMBINATIONS = 20_000
"""Chosen: more than any of the named spaces, and listed in seconds."""
MAX_NAME = 80
"""Most letters of a network's name. Chosen: names are columns of tables."""
_DIGITS = 12

Choice = bool | int | float | str | None


@dataclass
class _Question:
    """A parameter that was asked for, its values, and which of them is being tried."""

    parameter: str
    values: Sequence[Any]
    place: int = 0


class _Walk(FixedTrial):
    """A trial that answers what the walk has come to, and to what it has not met yet, with the first value."""

    def __init__(self, questions: list[_Question]) -> None:
        self.questions = questions
        self.chosen: dict[str, Any] = {}
        self.ended = False
        super().__init__(self.chosen)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """See `optuna.trial.Trial`; the choices are to be what names can be made of."""
        if not all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices):
            raise ConfigError(
                f"choices of {name!r} are not all None, bool, int, float or str; suggest names, and look things up."
            )
        self._answer(name, list(choices))
        return super().suggest_categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """See `optuna.trial.Trial`."""
        self._answer(name, range(low, high + 1, step))
        return super().suggest_int(name, low, high, step=step, log=log)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """See `optuna.trial.Trial`; a step is needed."""
        if step is None:
            raise ConfigError(
                f"{name!r} is a float without a step, which makes networks without end; pass step= to suggest_float."
            )
        # In decimals, as Optuna counts: 0.1 + 2 * 0.1 is not 0.3.
        first, width = Decimal(str(low)), Decimal(str(step))
        number = int((Decimal(str(high)) - first) / width) + 1
        places = range(min(number, MAX_COMBINATIONS + 1))
        self._answer(name, [float(first + place * width) for place in places])
        return super().suggest_float(name, low, high, step=step, log=log)

    def _answer(self, name: str, values: Sequence[Any]) -> None:
        if self.ended:
            raise ConfigError(
                f"{name!r} is asked for when a network is built; ask for it in the function itself."
            )
        if name in self.chosen or not values:  # Optuna's own answer, or complaint
            return
        if len(values) > MAX_COMBINATIONS:
            raise _too_many()
        depth = len(self.chosen)
        if depth == len(self.questions):
            self.questions.append(_Question(name, values))
        question = self.questions[depth]
        if (question.parameter, question.values) != (name, values):
            raise ConfigError(
                f"{name!r} is asked for where another call with the same values so far asked for"
                f" {question.parameter!r}, or with another range; let nothing but the trial decide."
            )
        self.chosen[name] = question.values[question.place]


def combinations_of(function: Callable[..., object]) -> Iterator[tuple[dict[str, Choice], object]]:
    """Parameters and what the function returned for them: every combination once, the last parameter varying fastest.

    A combination at which the function raises `optuna.TrialPruned` is left out.

    Raises:
        ConfigError: it asks for nothing, for a float without a step or more than MAX_COMBINATIONS, it fails, or calls
            with the same values differ.

    Example:
        >>> def space(trial):
        ...     depth = trial.suggest_int("depth", 1, 2)
        ...     return [trial.suggest_categorical("norm", ["batch", "none"])] * depth if depth > 1 else []
        >>> [parameters for parameters, _ in combinations_of(space)]
        [{'depth': 1}, {'depth': 2, 'norm': 'batch'}, {'depth': 2, 'norm': 'none'}]
    """
    questions: list[_Question] = []
    for _ in range(MAX_COMBINATIONS):
        trial = _Walk(questions)
        try:
            given = function(trial)
        except TrialPruned:
            pass
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the function failed at {trial.chosen} with {type(error).__name__}: {error}; where a combination makes"
                " no network, raise optuna.TrialPruned."
            ) from error
        else:
            trial.ended = True
            yield dict(trial.chosen), given
        if not questions:
            raise ConfigError(
                "the function asks the trial for no parameter; suggest at least one, or give a list."
            )
        while questions and questions[-1].place == len(questions[-1].values) - 1:
            questions.pop()
        if not questions:
            return
        questions[-1].place += 1
    raise _too_many()


def names_of(combinations: Sequence[Mapping[str, Choice]]) -> list[str]:
    """A name for each combination, of letters that are safe in files: parameters and values, `width-8_norm-batch`.

    Long names, and those of combinations that differ in other letters only, end in a digest.
    """
    names = [
        re.sub(r"[^a-zA-Z0-9_.+-]", "-", "_".join(f"{k}-{v}" for k, v in each.items()))
        for each in combinations
    ]
    times = Counter(names)
    return [
        name
        if times[name] == 1 and len(name) <= MAX_NAME
        else f"{name[: MAX_NAME - 1 - _DIGITS]}-{_digest(each)}"
        for name, each in zip(names, combinations, strict=True)
    ]


def _digest(combination: Mapping[str, Choice]) -> str:
    return hashlib.sha256(repr(combination).encode()).hexdigest()[:_DIGITS]


def _too_many() -> ConfigError:
    return ConfigError(
        f"the function makes more than {MAX_COMBINATIONS:,} combinations; suggest fewer values or larger steps."
    )
