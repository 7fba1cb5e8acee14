"""Training and testing several small networks: ways of doing it, side by side, on one set.

One network after the other: `plain` is eager float32, `eager` computes in the device's precision, `compiled`
is what `atom.evaluate` does where the work is worth the compile time. `stacked` and `stacked-compiled` train
all networks at once with `torch.func.vmap`; the check of its weights against training one by one is printed.
With `--processes`, every way runs in that many processes of one thread at a time. The ways alternate, so that
a busy machine slows all; medians over the repeats.

    python benchmarks/evaluate_many.py --shape 3 32 32 --ipc 1 --networks 5 --processes 2

Shapes: M networks, N training images, T test images, C channels, H height, W width, K classes.
"""

import argparse
import copy
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from atom import nets
from atom.augment import augment, draw_params
from atom.device import autocast, describe_hardware, resolve_precision
from atom.settings import EvaluateSettings, parse_dsa_strategy
from atom.streams import stream
from atom.train import Forward, predict, run, train_network

NUM_CLASSES = 10
CPU = torch.device("cpu")
FLOAT32 = torch.float32
# Timed epochs and test images; the report scales them to a whole evaluation.
TIMED_EPOCHS, TIMED_TEST = 3, 300


@dataclass(frozen=True)
class Problem:
    """What is trained and tested; small enough to travel to other processes."""

    network: str
    shape: tuple[int, int, int]
    ipc: int
    networks: int

    def images(self, count: int) -> Tensor:
        """Noise [count, C, H, W]."""
        return torch.from_numpy(stream(count, "benchmark").standard_normal((count, *self.shape))).float()

    def labels(self) -> Tensor:
        """Labels of the small set [N], the classes in order."""
        return torch.arange(NUM_CLASSES).repeat_interleave(self.ipc)

    def fresh_net(self, seed: int, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
        """The network with the weights of a seed."""
        channels, height, width = self.shape
        net = nets.build(self.network, channels=channels, image_size=(height, width), num_classes=NUM_CLASSES)
        nets.fill_weights(net, stream(seed, "evaluate/weights"))
        return net.to(memory_format=layout)


def settings_for(dtype: torch.dtype, epochs: int) -> EvaluateSettings:
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return EvaluateSettings(epochs=epochs, eval_precision=precision, batch_train=100_000)


class OneByOne:
    """The path of `atom.evaluate`: each network trained on its own."""

    def __init__(self, problem: Problem, dtype: torch.dtype, *, compiled: bool) -> None:
        self.problem, self.dtype = problem, dtype
        self.forward: Forward = torch.compile(run, dynamic=False) if compiled else run
        layout = torch.channels_last if compiled else torch.contiguous_format
        self.nets = [problem.fresh_net(seed, layout) for seed in range(problem.networks)]
        self.images, self.labels = problem.images(NUM_CLASSES * problem.ipc), problem.labels()
        self.test = problem.images(TIMED_TEST)

    def train(self, epochs: int) -> None:
        """Train every network."""
        settings = settings_for(self.dtype, epochs)
        for seed, net in enumerate(self.nets):
            train_network(net, self.images, self.labels, settings=settings, seed=seed, forward=self.forward)

    def predict(self) -> None:
        """Run every network on the test images."""
        for net in self.nets:
            predict(net, self.test, dtype=self.dtype, forward=self.forward)


class Stacked:
    """All networks as one, their weights stacked along a first axis; every network draws its own DSA."""

    def __init__(self, problem: Problem, dtype: torch.dtype, *, compiled: bool) -> None:
        self.problem, self.dtype = problem, dtype
        members = [problem.fresh_net(seed) for seed in range(problem.networks)]
        self.weights, self.buffers = stack_module_state(members)
        self.base = copy.deepcopy(members[0]).to("meta")
        logits = vmap(self._logits_of_one, in_dims=(0, 0, 0))
        self.logits: Callable[..., Tensor] = torch.compile(logits, dynamic=False) if compiled else logits
        self.images, self.labels = problem.images(NUM_CLASSES * problem.ipc), problem.labels()
        self.test = problem.images(TIMED_TEST)

    def _logits_of_one(
        self, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor
    ) -> Tensor:
        return functional_call(self.base, (weights, buffers), (images,))

    def train(self, epochs: int) -> None:
        """Train all networks, each as if alone."""
        settings = settings_for(self.dtype, epochs)
        operations = parse_dsa_strategy(settings.eval_dsa_strategy)
        leaves = list(self.weights.values())
        optimizer = torch.optim.SGD(
            leaves, settings.lr_net, settings.momentum_net, weight_decay=settings.weight_decay, fused=True
        )
        for epoch in range(epochs):
            if epoch == (epochs + 1) // 2:
                optimizer.param_groups[0]["lr"] = settings.lr_net * 0.1
            images_MNCHW, labels_MN = self._batches(epoch, operations)
            with autocast(CPU, self.dtype):
                logits_MNK = self.logits(self.weights, self.buffers, images_MNCHW)
            # The mean over a network's images, summed over networks: each gets the gradient of its own loss.
            loss = nn.functional.cross_entropy(logits_MNK.float().flatten(0, 1), labels_MN.flatten())
            optimizer.zero_grad()
            (loss * self.problem.networks).backward()
            optimizer.step()

    def _batches(self, epoch: int, operations: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """What `train_network` would show each network in this epoch."""
        _, height, width = self.problem.shape
        batches, labels = [], []
        for seed in range(self.problem.networks):
            rows = torch.from_numpy(stream(seed, "evaluate/order", epoch).permutation(len(self.images)))
            rng = stream(seed, "evaluate/augment", epoch, 0)
            params = draw_params(operations, num_rows=len(rows), height=height, width=width, rng=rng)
            batches.append(augment(self.images[rows], torch.from_numpy(params)))
            labels.append(self.labels[rows])
        return torch.stack(batches), torch.stack(labels)

    @torch.no_grad()
    def predict(self) -> None:
        """Run all networks on the test images."""
        for batch in self.test.split(100):
            repeated = batch.expand(self.problem.networks, *batch.shape)
            with autocast(CPU, self.dtype):
                self.logits(self.weights, self.buffers, repeated)


WAYS: dict[str, Callable[[Problem], OneByOne | Stacked]] = {
    "plain": lambda problem: OneByOne(problem, FLOAT32, compiled=False),
    "eager": lambda problem: OneByOne(problem, resolve_precision("auto", CPU), compiled=False),
    "compiled": lambda problem: OneByOne(problem, resolve_precision("auto", CPU), compiled=True),
    "stacked": lambda problem: Stacked(problem, resolve_precision("auto", CPU), compiled=False),
    "stacked-compiled": lambda problem: Stacked(problem, resolve_precision("auto", CPU), compiled=True),
}


def seconds_of(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(problem: Problem, ways: Sequence[str], repeats: int) -> dict[str, tuple[float, float, float]]:
    """For each way: seconds of the first call, of a training epoch, of testing one image; per network."""
    runners = {way: WAYS[way](problem) for way in ways}
    first = {way: seconds_of(lambda r=r: (r.train(1), r.predict())) for way, r in runners.items()}
    train: dict[str, list[float]] = {way: [] for way in ways}
    test: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, runner in runners.items():
            train[way].append(seconds_of(lambda r=runner: r.train(TIMED_EPOCHS)))
            test[way].append(seconds_of(runner.predict))
    return {
        way: (
            first[way],
            statistics.median(train[way]) / TIMED_EPOCHS / problem.networks,
            statistics.median(test[way]) / TIMED_TEST / problem.networks,
        )
        for way in ways
    }


def measure_in_processes(
    problem: Problem, ways: Sequence[str], repeats: int, *, processes: int
) -> dict[str, tuple[float, float, float]]:
    """`measure` in several processes of one thread at once, whose networks share the time."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        each = pool.starmap(measure, [(problem, ways, repeats)] * processes, chunksize=1)
    return {
        way: (
            max(one[way][0] for one in each),
            statistics.fmean(one[way][1] for one in each) / processes,
            statistics.fmean(one[way][2] for one in each) / processes,
        )
        for way in ways
    }


def check_stacked(problem: Problem) -> float:
    """Largest difference of weights between stacked and one-by-one training, float32, a few epochs."""
    alone, together = WAYS["plain"](problem), Stacked(problem, FLOAT32, compiled=False)
    assert isinstance(alone, OneByOne)
    alone.train(4)
    together.train(4)
    return max(
        (together.weights[name][index] - weight).abs().max().item()
        for index, net in enumerate(alone.nets)
        for name, weight in net.named_parameters()
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="convnet")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32), metavar=("C", "H", "W"))
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--networks", type=int, default=5, help="in each process")
    parser.add_argument("--threads", type=int, default=1, help="of the process, if there is one")
    parser.add_argument("--processes", type=int, default=1, help="at a time, of one thread each")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=300, help="of the evaluation the report scales to")
    parser.add_argument("--test-images", type=int, default=10_000, help="likewise")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    problem = Problem(arguments.network, tuple(arguments.shape), arguments.ipc, arguments.networks)
    header = {"hardware": describe_hardware(), "torch": torch.__version__, **vars(arguments)}
    print(json.dumps(header, default=str))
    if any(way.startswith("stacked") for way in arguments.ways):
        print(f"stacked against one by one, largest difference of a weight: {check_stacked(problem):.1e}")
    if arguments.processes == 1:
        measured = measure(problem, arguments.ways, arguments.repeats)
    else:
        measured = measure_in_processes(
            problem, arguments.ways, arguments.repeats, processes=arguments.processes
        )
    rows = []
    for way, (first_s, epoch_s, image_s) in measured.items():
        steady_s = epoch_s * arguments.epochs + image_s * arguments.test_images
        baseline_s = rows[0]["seconds_a_network"] if rows else steady_s
        rows.append(
            {
                "way": way,
                "epoch_ms": round(epoch_s * 1e3, 2),
                "seconds_a_network": round(steady_s, 2),
                "speedup": round(baseline_s / steady_s, 2),
                "first_call_s": round(first_s, 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({**header, "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
