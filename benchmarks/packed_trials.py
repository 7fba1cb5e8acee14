"""Networks a minute, ranked by processes that take one network after another, or one network a trial.

    python benchmarks/packed_trials.py --space all --sample 24 --out FILE.json
    python benchmarks/packed_trials.py --space all --packed-only --out FILE.json

The same scores on the same digits by the same code: `atom-nas` streams networks through workers that hold the images
and live as long as the command; the plain way is a Ray Tune trial for each, a process of its own that imports PyTorch
and fetches the images.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from ray import tune

from apps.nas.trial import Unit
from atom.device import describe_hardware
from pipelines.architecture.case import NasCase
from pipelines.architecture.plan import plan
from pipelines.architecture.rank import score_units
from pipelines.architecture.remote import ImageHolder, Shared
from pipelines.architecture.scores import Scores
from pipelines.architecture.tune_round import tune_environment
from pipelines.console.commands import NasCommand
from pipelines.console.signals import StopSignal
from pipelines.output.store import Store
from pipelines.real_images import load_real
from pipelines.workers.cluster import connect
from pipelines.workers.resources import ActorSize


def case_of(asked: argparse.Namespace, folder: Path) -> NasCase:
    """A ranking with everything decided."""
    command = NasCommand.of(
        dataset="digits",
        data_dir=folder / "data",
        space=asked.space,
        sample=asked.sample,
        proxies=(asked.proxy,),
        ipc=asked.ipc,
        seeds=1,
        batch_train=64,
    )
    real = load_real(command.data, smoke=False)
    size, store = ActorSize(asked.workers, cpus=1, gpus=0), Store.open(folder / "out")
    return NasCase(command, plan(command, [], real), [], real, store, size, "cpu")


def packed(case: NasCase) -> tuple[float, dict[str, float]]:
    """Seconds and scores of the way of `atom-nas`."""
    scored, begun_s = Scores(), time.monotonic()
    score_units(case, _units(case), scored, StopSignal(), label="packed")
    return time.monotonic() - begun_s, {row.network: row.score or 0.0 for row in scored.of(case.primary.name)}


def one_a_trial(case: NasCase) -> tuple[float, dict[str, float]]:
    """Seconds and scores of one network a trial."""
    shared, begun_s = case.shared(), time.monotonic()

    def trial(config: dict[str, str], shared: Shared) -> None:
        from apps.nas.trial import run_unit

        holder = ImageHolder(shared)
        unit = Unit(config["network"], next(iter(shared.proxies)), 0)
        tune.report({"score": run_unit(unit, shared.proxies[unit.proxy], **holder.given()).score})

    with tempfile.TemporaryDirectory() as folder, tune_environment():
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, shared=shared), {"cpu": 1}),
            param_space={"network": tune.grid_search(list(case.space.names))},
            tune_config=tune.TuneConfig(max_concurrent_trials=case.size.num_actors),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        scores = {result.config["network"]: result.metrics["score"] for result in results}
    return time.monotonic() - begun_s, scores


def _units(case: NasCase) -> list[Unit]:
    return [Unit(network, case.primary.name, 0) for network in case.space.names]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default="all")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--proxy", default="random:10")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--packed-only", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    told = {"of": {k: str(v) for k, v in vars(asked).items() if k != "out"}, "hardware": describe_hardware()}
    with connect(), tempfile.TemporaryDirectory() as folder:
        case = case_of(asked, Path(folder))
        number = len(case.space.names)
        seconds, scores = packed(case)
        told |= {
            "networks": number,
            "packed_s": round(seconds, 1),
            "packed_a_minute": round(60 * number / seconds, 1),
        }
        if not asked.packed_only:
            plain_s, plain = one_a_trial(case)
            assert plain == scores, "both ways score alike"
            told |= {
                "one_a_trial_s": round(plain_s, 1),
                "one_a_trial_a_minute": round(60 * number / plain_s, 1),
                "times_faster": round(plain_s / seconds, 2),
            }
    print(json.dumps(told, indent=1))
    asked.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
