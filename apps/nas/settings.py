"""What a search is asked for: the space, the proxies, the reference, the budget."""

from typing import Annotated, Literal

from pydantic import Field

from atom.settings import Settings


class NasSettings(Settings):
    """Which networks are scored by what, and what is made of the scores."""

    mode: Literal["rank", "search"] = "rank"
    """rank: every network by every proxy with one budget, comparable; search: networks climb --ladder in search of
    the best, and the others are left unfinished."""
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
    retrain: Annotated[int, Field(ge=0)] | None = None
    """Train this many of the best networks on the whole set, and deliver the best of them; default 3 after a search,
    else 0."""
    retrain_seeds: Annotated[int, Field(ge=1)] = 3
    """Trainings of each of these."""
    # With an underscore, which the flag has not: pydantic's models have a method of that name.
    json_: bool = False
    """Print one more line at the end, JSON: the network to take, what it reaches and costs, and where all lies."""
    memory_per_actor: Annotated[float, Field(gt=0)] | None = None
    """GiB of memory that Ray sets aside for each worker, so that no more are placed than fit. Default none."""
    resamples: Annotated[int, Field(ge=100)] = 9999
    """Bootstrap resamples of the networks. Source of the default: scipy.stats.bootstrap."""
    ladder: tuple[str, ...] = ()
    """Rungs of --mode search: first perhaps scores without training (synflow+naswot), then trainings: distilled:50,
    part-20:5, whole:2, whole:10. Default by the length of a training."""
    search_trials: Annotated[int, Field(ge=1)] | None = None
    """Networks that --mode search trains at the lowest rung; default 60, or with --budget-minutes what it allows."""
    budget_minutes: Annotated[float, Field(gt=0)] | None = None
    """Worker-minutes of --mode search in all, those of distillation included, those of --retrain not; default none."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Which networks --mode search trains first: Optuna's TPE, random ones, or the space's in order."""
    optuna_storage: str = ""
    """URL of an Optuna storage, such as sqlite:///search.db: --mode search adds its networks to the study named as the
    run there, for Optuna's dashboard."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Of the networks at a rung, --mode search lets one in this many go on. Chosen."""
    max_parameters: Annotated[int, Field(ge=1)] | None = None
    """Leave out networks of more parameters."""
    max_multiply_adds: Annotated[int, Field(ge=1)] | None = None
    """Leave out networks of more multiply-adds."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Of --mode search: leave out networks that take longer for one image, measured on a worker."""
