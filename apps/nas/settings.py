"""What a search is asked for: the space, the proxies, the reference, the budget."""

from typing import Annotated, Literal

from pydantic import Field

from atom.settings import Settings


class NasSettings(Settings):
    """Which networks are scored by what, and what is made of the scores."""

    mode: Literal["rank", "search"] = "rank"
    """rank: every network by every proxy with one budget, comparable; search: ASHA and Optuna look for the best
    network by the first proxy, and leave the others unfinished."""
    space: str = "all"
    """Networks: all (720 ConvNets), pooled (480), small (240: pooled, width 32 or 64), nasbench201 (15,625 of cells),
    nasbench201-n1 (the same with one cell a stage), or module:object of yours."""
    sample: Annotated[int, Field(ge=1)] | None = None
    """Take only this many networks of the space, a stratified random sample, the same whatever --seed; default all."""
    proxies: tuple[str, ...] = (
        "distilled",
        "random",
        "herding",
        "early-steps",
        "parameters",
        "multiply-adds",
        "synflow",
        "naswot",
    )
    """How to score; the first picks the winner: distilled, random, herding, kcenter, early-steps, early-seconds,
    parameters, multiply-adds, synflow, naswot, grad-norm, jacob-cov, whole, fitted, module:function, a+b."""
    ipc: Annotated[int, Field(ge=1)] = 10
    """Images per class of a set distilled here, and of coresets without a set; else those of --set."""
    iterations: Annotated[int, Field(ge=1)] | None = None
    """Iterations of a set distilled here; default as for atom-distill."""
    reference: str = "none"
    """Whole-set accuracies to judge the proxies by: none, whole (trained here), or a table of your own (.parquet,
    .csv with columns network, accuracy and perhaps seed)."""
    seeds: Annotated[int, Field(ge=1)] = 2
    """Trainings of a network on each proxy."""
    reference_seeds: Annotated[int, Field(ge=1)] = 2
    """Trainings of a network on the whole training set; two or more show how far the reference can be trusted."""
    whole_epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs on the whole training set; default 100 on a GPU (DM, recalled), 10 on a CPU (chosen)."""
    retrain: Annotated[int, Field(ge=0)] = 0
    """Train this many of the best networks by the first proxy on the whole set, and deliver the best of them."""
    retrain_seeds: Annotated[int, Field(ge=1)] = 3
    """Trainings of each of these."""
    resamples: Annotated[int, Field(ge=100)] = 9999
    """Bootstrap resamples of the networks. Source of the default: scipy.stats.bootstrap."""
    search_trials: Annotated[int, Field(ge=1)] = 60
    """Networks that --mode search tries."""
    grace_epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs before --mode search may stop a network; default an eighth of all."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Of the networks at a rung, --mode search lets one in this many go on. Chosen."""
