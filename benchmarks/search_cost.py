"""What finding a network costs: the accuracy of the network that a search delivers, against worker-minutes.

    atom-distill --dataset parquet:DIR --train-per-class 500 --validation-frac 0.05 --ipc 10 --output runs/searched
    python benchmarks/search_cost.py measure --dataset parquet:DIR --set runs/searched/set --out FILE.jsonl --share 0/2
    python benchmarks/search_cost.py tell FILE.jsonl --out results.json --plot plot.png

`measure` trains every network of a sample once on everything that a rung may use, and notes scores and seconds: a
table. `tell` replays searches on the table: every way of searching meets the networks in the same random orders, spends
the recorded seconds, and delivers the network with the best validation accuracy at the top; what it is worth are the
test images after that training. So a thousand searches cost nothing, and ways are compared on the same orders; other
trainings and other distilled sets are not in the spread. Lines that FILE has are not measured again.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from apps.nas.combined import rank_mean
from apps.nas.fitted import fit_reference
from apps.nas.proxies import Proxy
from apps.nas.space import load_space, sample
from apps.nas.trial import Images, Recipe, Score, Unit, train_unit
from apps.nas.verdict import ProxyScores, judge
from atom import data
from atom.device import describe_hardware
from atom.distilled import DistilledSet
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from atom.streams import stream
from atom.train import accuracy, compute_dtype
from pipelines.architecture.proxies import MAIN, gather
from pipelines.workers.cluster import as_tensor

LOOKS = (1, 2, 4, 8)
"""Epochs on the whole share at which its training is looked at; the last ends it."""
SET_EPOCHS = 50
ZERO_COST = ("parameters", "multiply-adds", "synflow", "naswot")
SETS = ("random", "herding", "distilled")
MINUTES = (2, 4, 8, 16, 32)


def measure(asked: argparse.Namespace) -> None:
    """Train the networks of this share, and add a line each to the file."""
    torch.set_num_threads(1)
    real = data.load(asked.dataset, data_dir=Path("data"))
    real = real.hold_out(asked.validation_frac, train_per_class=asked.train_per_class)
    assert real.validation is not None
    distilled = DistilledSet.load(asked.set)
    names = [
        *ZERO_COST,
        *(f"{name}:{SET_EPOCHS}" for name in SETS),
        f"part-20:{LOOKS[-1]}",
        f"whole:{LOOKS[-1]}",
    ]
    material = gather(
        names,
        [distilled],
        [_seconds(asked.set)],
        real,
        distilled.preprocess,
        ipc=distilled.ipc,
        seeds=1,
        seed=0,
        own_digests={},
    )
    channels, height, width = real.train.images.shape[1:]
    space = load_space(
        asked.space, channels=channels, image_size=(height, width), num_classes=real.train.num_classes
    )
    space = sample(space, asked.sample, seed=0)
    settings = EvaluateSettings(epochs=SET_EPOCHS, batch_train=64)
    recipe = Recipe(resolve_evaluation(settings, device_kind="cpu", symbols=real.symbols), LOOKS[-1], steps=1)
    images = {
        name: Images(**{part: tuple(as_tensor(a) for a in pair) for part, pair in parts.items()})
        for name, parts in material.real.items()
    }
    known = {(line["network"], line["proxy"]) for line in _lines(asked.out)}
    place, of = map(int, asked.share.split("/"))
    for candidate in space.candidates[place::of]:
        for proxy in material.proxies:
            label = f"distilled:{SET_EPOCHS}" if proxy.of_set else proxy.name
            if (candidate.name, label) in known:
                continue
            line = _line(
                candidate.name, proxy, space=space, small=material.draws(), real=images, recipe=recipe
            )
            line |= {
                "proxy": label,
                "parameters": candidate.parameters,
                "multiply_adds": candidate.multiply_adds,
            }
            if label == f"whole:{LOOKS[-1]}":
                line["prepare"] = {
                    p.name.partition(":")[0] if not p.of_set else "distilled": p.prepare_seconds
                    for p in material.proxies
                    if p.kind == "set"
                }
                line["hardware"], line["of"] = describe_hardware(), _facts(asked, real)
            with asked.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
        print(candidate.name, flush=True)


def _line(network: str, proxy: Proxy, **given: Any) -> dict[str, Any]:
    curve: list[tuple[int, float, float]] = []

    def look(epoch: int, score: Callable[[], Score]) -> None:
        if proxy.name.startswith("whole") and epoch in LOOKS[:-1]:
            found = score()
            curve.append((epoch, found.score, found.train_seconds + found.score_seconds))

    unit = Unit(network, proxy.name, 0)
    trains = proxy.kind in ("set", "real")
    net, found = train_unit(
        unit, proxy, device=torch.device("cpu"), on_epoch=look if trains else None, **given
    )
    curve.append((proxy.epochs or 0, found.score, found.train_seconds + found.score_seconds))
    line: dict[str, Any] = {"network": network, "curve": curve}
    if proxy.name.startswith("whole"):
        dtype = compute_dtype(given["recipe"].settings)
        line["test"] = accuracy(net, *given["real"][MAIN].test, dtype=dtype)
    return line


def _facts(asked: argparse.Namespace, real: Any) -> dict[str, Any]:
    parts = {"train": real.train, "validation": real.validation, "test": real.test}
    return {
        **{name: len(part.labels) for name, part in parts.items()},
        **{name: getattr(asked, name) for name in ("space", "sample", "train_per_class", "validation_frac")},
    }


def _seconds(directory: Path) -> float:
    from pipelines.sets import distil_seconds

    found = distil_seconds(DistilledSet.load(directory), directory)
    assert found is not None, "a set that was made here knows what it took"
    return found


@dataclass
class Table:
    """Everything measured, by network.

    Attributes:
        names: of the networks that have every line.
        scores: by proxy and network: validation accuracy or score.
        seconds: of these.
        looks: of the training on the whole share: by network, (epochs, accuracy, seconds so far).
        test: accuracy in percent after that training.
        prepare: seconds that a set cost before the first network.
    """

    names: list[str] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    looks: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    prepare: dict[str, float] = field(default_factory=dict)


@dataclass
class Purse:
    """Worker-seconds of one search."""

    limit_s: float
    spent_s: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything is left to begin a training with; what is begun is finished."""
        return self.spent_s < self.limit_s


def climb(
    table: Table, order: Sequence[str], limit_s: float, looks: Sequence[int], factor: int = 2
) -> str | None:
    """Train in this order on the whole share, halved by ASHA at the looks; the best at the top, or None."""
    purse, rungs, top = Purse(limit_s), {look: [] for look in looks}, {}
    for network in order:
        before = 0.0
        for epochs, score, seconds in table.looks[network]:
            if epochs not in looks:
                continue
            if not before and not purse.any:
                return max(top, key=top.__getitem__, default=None)
            purse.spent_s += seconds - before
            before = seconds
            if epochs == looks[-1]:
                top[network] = score
            # As Ray's ASHA does, which looks at those that came before.
            elif rungs[epochs] and score < np.percentile(rungs[epochs], 100 * (1 - 1 / factor)):
                rungs[epochs].append(score)
                break
            rungs[epochs].append(score)
    return max(top, key=top.__getitem__, default=None)


def filtered(
    table: Table, order: Sequence[str], limit_s: float, proxy: str, prepare_s: float, looks: Sequence[int]
) -> str | None:
    """Half of the budget for a first stage on a set, then its best first on the whole share."""
    left = limit_s - prepare_s
    if left <= 0:
        return None
    purse, seen = Purse(left / 2), {}
    for network in order:
        if not purse.any:
            break
        purse.spent_s += table.seconds[proxy][network]
        seen[network] = table.scores[proxy][network]
    best = sorted(seen, key=seen.__getitem__, reverse=True)
    return climb(table, best, left - purse.spent_s, looks)


def ways(table: Table) -> dict[str, Callable[[Sequence[str], float], str | None]]:
    """Every way of searching: an order of the networks and worker-seconds give the network it delivers."""
    cheap = rank_mean({name: table.scores[name] for name in ("synflow", "naswot")})
    scoring_s = sum(table.seconds[name][network] for name in ("synflow", "naswot") for network in table.names)
    by_cheap = sorted(table.names, key=cheap.__getitem__, reverse=True)
    top = LOOKS[-1:]

    def on_set(name: str, prepare_s: float) -> Callable[[Sequence[str], float], str | None]:
        return lambda order, s: filtered(table, order, s, f"{name}:{SET_EPOCHS}", prepare_s, (2, 8))

    made = table.prepare["distilled"]
    return {
        "random search": lambda order, s: climb(table, order, s, top),
        "ASHA": lambda order, s: climb(table, order, s, LOOKS),
        "synflow+naswot, whole:2, whole:8": lambda order, s: climb(table, by_cheap, s - scoring_s, (2, 8)),
        "random:50, whole:2, whole:8": on_set("random", table.prepare["random"]),
        "herding:50, whole:2, whole:8": on_set("herding", table.prepare["herding"]),
        "distilled:50, whole:2, whole:8": on_set("distilled", made),
        "the same, one set for five searches": on_set("distilled", made / 5),
        "the same, the set for nothing": on_set("distilled", 0.0),
        "part-20:8, whole:2, whole:8": lambda order, s: filtered(table, order, s, "part-20:8", 0.0, (2, 8)),
    }


def tell(asked: argparse.Namespace) -> None:
    """Replay searches, judge the rungs, write the tables and the plot."""
    lines = _lines(asked.file)
    table = _table(lines)
    ladder = ways(table)
    limits = {minutes: 60.0 * minutes for minutes in MINUTES}
    best, worst = max(table.test.values()), min(table.test.values())
    found: dict[str, dict[int, list[float]]] = {way: {m: [] for m in limits} for way in ladder}
    for seed in range(asked.searches):
        order = [table.names[i] for i in stream(seed, "benchmarks/search-cost").permutation(len(table.names))]
        for way, search in ladder.items():
            for minutes, limit_s in limits.items():
                pick = search(order, limit_s)
                found[way][minutes].append(math.nan if pick is None else table.test[pick])
    told = {
        way: {str(m): _told(values, found["ASHA"][m]) for m, values in budgets.items()}
        for way, budgets in found.items()
    }
    first = next(line for line in lines if "of" in line)
    content = {
        "command": "see benchmarks/search_cost.py",
        "of": first["of"],
        "hardware": first["hardware"],
        "networks": len(table.names),
        "searches": asked.searches,
        "first five searches": {w: {str(m): v[:5] for m, v in b.items()} for w, b in found.items()},
        "best": best,
        "worst": worst,
        "prepare_s": table.prepare,
        "whole_s": sum(looks[-1][2] for looks in table.looks.values()),
        "minutes": told,
        "rungs": _rungs(table),
    }
    asked.out.write_text(json.dumps(content, indent=1) + "\n")
    for way, budgets in told.items():
        print(
            f"{way:38}",
            *(f"{m}: {v['mean']} ± {v['std']} ({v['to_asha']})" for m, v in budgets.items()),
            sep=" | ",
        )
    for rung in content["rungs"]:
        print(rung)
    if asked.plot:
        _plot(found, best, asked.plot)


def _told(values: list[float], asha: list[float]) -> dict[str, Any]:
    """Mean and spread over searches, and the paired difference to ASHA: mean and the middle 95 % of the searches.

    That is how far the luck of the order moves it; other networks, trainings and sets are not in it.
    """
    pairs = [a - b for a, b in zip(values, asha, strict=True) if math.isfinite(a) and math.isfinite(b)]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return {"mean": None, "std": None, "n": 0, "to_asha": None}
    to_asha = None
    if pairs:
        low, high = np.percentile(pairs, [2.5, 97.5]).tolist()
        to_asha = [round(x, 2) for x in (fmean(pairs), low, high)]
    spread = round(stdev(known), 2) if len(known) > 1 else None
    return {"mean": round(fmean(known), 2), "std": spread, "n": len(known), "to_asha": to_asha}


def _rungs(table: Table) -> list[dict[str, Any]]:
    """How every rung ranks the networks, by the verdict of a ranking."""
    columns = dict(table.scores)
    for place, epochs in enumerate(LOOKS[:-1]):
        columns[f"whole:{epochs}"] = {name: looks[place][1] for name, looks in table.looks.items()}
    cheap = ("synflow", "naswot")
    for members in (cheap, (*cheap, "parameters"), (f"random:{SET_EPOCHS}", *cheap)):
        columns["+".join(members)] = rank_mean({member: table.scores[member] for member in members})
    known = {
        name: table.scores[name] for name in (*cheap, "parameters", "multiply-adds", f"random:{SET_EPOCHS}")
    }
    fitted = fit_reference(known, table.test)
    if fitted is not None:
        columns["fitted"] = fitted[0]
    verdict = judge(
        [
            ProxyScores(
                name,
                {network: (value,) for network, value in scores.items()},
                images=0,
                train_seconds=sum(table.seconds.get(name, {}).values()),
                prepare_seconds=0.0,
            )
            for name, scores in columns.items()
        ],
        {name: (value,) for name, value in table.test.items()},
        reference_name="test accuracy after whole:8",
        reference_seconds=0.0,
        resamples=2000,
    )
    told = []
    for proxy in verdict.proxies:
        every = next(part for part in proxy.agreement if part.subset == "all")
        top = next((part for part in proxy.agreement if part.subset == "top 20 %"), None)
        told.append(
            {
                "rung": proxy.name,
                "kendall": _rounded(every.kendall),
                "kendall_top20": _rounded(top.kendall) if top else None,
                "seconds": round(sum(table.seconds.get(proxy.name, {}).values())),
            }
        )
    return sorted(told, key=lambda one: -(one["kendall"][0] or 0.0))


def _rounded(estimate: Any) -> list[float | None]:
    return [None if v is None else round(v, 2) for v in (estimate.value, estimate.low, estimate.high)]


def _table(lines: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for line in lines:
        network, proxy = line["network"], line["proxy"]
        _, score, seconds = line["curve"][-1]
        table.scores.setdefault(proxy, {})[network] = score
        table.seconds.setdefault(proxy, {})[network] = seconds
        if "test" in line:
            table.looks[network] = [tuple(look) for look in line["curve"]]
            table.test[network] = line["test"]
            table.prepare = line["prepare"]
    table.names = sorted(n for n in table.test if all(n in scores for scores in table.scores.values()))
    keep = set(table.names)
    table.test = {n: v for n, v in table.test.items() if n in keep}
    table.looks = {n: v for n, v in table.looks.items() if n in keep}
    for kept in (table.scores, table.seconds):
        for proxy, values in kept.items():
            kept[proxy] = {n: v for n, v in values.items() if n in keep}
    table.scores.pop(f"whole:{LOOKS[-1]}", None)
    return table


def _plot(found: dict[str, dict[int, list[float]]], best: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for way, budgets in found.items():
        points = [(m, np.nanmean(values)) for m, values in budgets.items() if np.isfinite(values).any()]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=way)
    axes.axhline(best, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(MINUTES), [str(minutes) for minutes in MINUTES])
    axes.set_xlabel("worker-minutes, sets included")
    axes.set_ylabel("test accuracy of what is delivered, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("measure")
    one.add_argument("--dataset", required=True)
    one.add_argument("--set", type=Path, required=True)
    one.add_argument("--train-per-class", type=int, default=500)
    one.add_argument("--validation-frac", type=float, default=0.05)
    one.add_argument("--space", default="small")
    one.add_argument("--sample", type=int, default=96)
    one.add_argument("--share", default="0/1")
    one.add_argument("--out", type=Path, required=True)
    two = verbs.add_parser("tell")
    two.add_argument("file", type=Path)
    two.add_argument("--searches", type=int, default=200)
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    begun_s = time.monotonic()
    (measure if asked.verb == "measure" else tell)(asked)
    print(f"{time.monotonic() - begun_s:.0f} s")


if __name__ == "__main__":
    main()
