"""The random numbers of a distillation: which real images, which augmentation, which network, iteration by iteration.

Each is a function of the seed, the iteration and the class; see `atom.streams`.
"""

# G classes of a group, B real images a class, P numbers of an augmentation row, F frequencies, D features

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from atom.augment import draw_params
from atom.methods.settings import DistillSettings
from atom.nets import WeightDraw
from atom.settings import parse_dsa_strategy
from atom.streams import stream


@dataclass(frozen=True)
class Draw:
    """The random numbers of one iteration, on the host.

    Attributes:
        weights: of the iteration's network, flat, for `WeightDraw.load`; None where it is none at random.
        rows_GB: int64, rows of each class's real images.
        params_GP: float32, the augmentation of each class, the same for its real and its synthetic images.
        frequencies_FD: float32, standard normal, where they were asked for.
    """

    weights: Tensor | None
    rows_GB: Tensor
    params_GP: Tensor
    frequencies_FD: Tensor | None = None


class Draws:
    """Draws for one network and image size.

    Args:
        settings: resolved; seed, batch_real and dsa_strategy are read.
        net: whose weights are drawn.
        height, width: of the images, in pixels.
        device: where the numbers will be used.
        frequencies: F and D, of a characteristic function; None, no such.
        random_network: whether each iteration has one; other numbers do not depend on it.
    """

    def __init__(
        self,
        settings: DistillSettings,
        net: nn.Module,
        *,
        height: int,
        width: int,
        device: torch.device,
        frequencies: tuple[int, int] | None = None,
        random_network: bool = True,
    ) -> None:
        self.operations = parse_dsa_strategy(settings.dsa_strategy)
        self.weights = WeightDraw(net)
        self._settings = settings
        self._size = (height, width)
        self._frequencies = frequencies
        self._random_network = random_network
        self._on_gpu = device.type == "cuda"

    def at(self, iteration: int, class_ids: Sequence[int], sizes: Sequence[int]) -> Draw:
        """The numbers of one iteration; `sizes` are the numbers of real images of the classes."""
        seed, (height, width) = self._settings.seed, self._size
        rows = [
            rows_of_batch(stream(seed, "distill/batch", iteration, c), size, self._settings.batch_real)
            for c, size in zip(class_ids, sizes, strict=True)
        ]
        params = [
            draw_params(
                self.operations,
                num_rows=1,
                height=height,
                width=width,
                rng=stream(seed, "distill/augment", iteration, c),
            )
            for c in class_ids
        ]
        # One network an iteration for all classes, as in the published loops.
        weights = None
        if self._random_network:
            weights = self.weights.draw(stream(seed, "distill/weights", iteration))
        frequencies_FD = None
        if self._frequencies is not None:
            rng = stream(seed, "distill/frequencies", iteration)
            frequencies_FD = self._sendable(rng.standard_normal(self._frequencies, dtype=np.float32))
        return Draw(
            weights, self._sendable(np.stack(rows)), self._sendable(np.concatenate(params)), frequencies_FD
        )

    def ahead(self, steps: range, class_ids: Sequence[int], sizes: Sequence[int]) -> Iterator[Draw]:
        """The numbers of each iteration in turn; for a GPU drawn one iteration ahead, so that it never waits."""
        if not self._on_gpu or not steps:
            yield from (self.at(step, class_ids, sizes) for step in steps)
            return
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead: Future[Draw] = pool.submit(self.at, steps[0], class_ids, sizes)
            for step in steps:
                current = ahead.result()
                if step + 1 < steps.stop:
                    ahead = pool.submit(self.at, step + 1, class_ids, sizes)
                yield current

    def _sendable(self, array: np.ndarray) -> Tensor:
        # From pinned memory a copy to the GPU does not stop the host.
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._on_gpu else tensor


def rows_of_batch(rng: np.random.Generator, size: int, batch: int) -> np.ndarray:
    """`batch` rows of a class of `size` images: without repetition, or, in a smaller class, all equally often."""
    if size >= batch:
        return rng.choice(size, size=batch, replace=False)
    rounds = -(-batch // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:batch]
