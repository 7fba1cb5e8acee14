"""A search as an Optuna study in a storage of the user's, for Optuna's dashboard and own analyses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from apps.nas.search_page import Tried
from atom.errors import ConfigError
from pipelines.architecture.search_proposals import Dimensions

if TYPE_CHECKING:
    from apps.nas.space import Space

_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def open_study(url: str, name: str) -> optuna.Study:
    """The study of that name, made where it is missing.

    Args:
        url: as Optuna takes it, such as sqlite:///search.db or postgresql://...; its driver has to be installed.
        name: of the study.

    Raises:
        ConfigError: the storage cannot be opened.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.create_study(study_name=name, storage=url, direction="maximize", load_if_exists=True)
    except Exception as error:  # of SQLAlchemy, of a driver that is not installed, of Optuna
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--optuna-storage: cannot be opened ({type(error).__name__}: {problem}); expected a URL such as"
            " sqlite:///search.db."
        ) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def write_study(study: optuna.Study, tried: Sequence[Tried], space: "Space") -> int:
    """Add the networks that the study lacks, or has come less far with; returns how many.

    A network that reached the top is a completed trial, one that was stopped a pruned one, with its score at every rung
    as an intermediate value.
    """
    dimensions = Dimensions(space)
    known = [
        (t.user_attrs.get("network"), t.state, t.intermediate_values)
        for t in study.get_trials(deepcopy=False)
    ]
    trials = []
    for one in tried:
        state, values = _STATES.get(one.status), dict(enumerate(one.scores.values()))
        if state is None or (one.network, state, values) in known:
            continue
        found: dict[str, Any] = {"parameters": one.parameters, "multiply_adds": one.multiply_adds}
        trials.append(
            optuna.trial.create_trial(
                state=state,
                value=one.last if state == TrialState.COMPLETE else None,
                params=dict(dimensions.points[one.network]),
                distributions=dimensions.distributions,
                user_attrs={"network": one.network, "rungs": list(one.scores), "reason": one.reason, **found},
                intermediate_values=values,
            )
        )
    study.add_trials(trials)
    return len(trials)
