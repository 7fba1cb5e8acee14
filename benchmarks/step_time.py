"""Time of one distillation step: the plain way of this family's published code against ours, in one process.

The plain way is written here from its description: a new network object every step, eager float32, NCHW, one
forward hook a ReLU that keeps the map, attention with `pow`, DSA class by class. Ours is `Atom` as the
pipeline runs it. The two alternate, so that a busy machine slows both; medians over the repeats are printed with
their ratio, and our achieved FLOP/s with its share of the machine's measured matrix-product rate.

    python benchmarks/step_time.py --ipc 1 10 50 --batch-real 128 --threads 2
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from atom import nets
from atom.augment import augment, draw_params
from atom.device import describe_hardware, matmul_rate
from atom.methods.matching_loop import Atom
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_settings
from atom.settings import parse_dsa_strategy
from atom.streams import stream

CHANNELS, HEIGHT, WIDTH, NUM_CLASSES, IMAGES_A_CLASS = 3, 32, 32, 10, 500


class PlainNet(nn.Module):
    """ConvNet-3 of width 128 with instance normalisation, as a list of modules that hooks can reach."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = CHANNELS
        for _ in range(3):
            layers += [
                nn.Conv2d(channels, 128, 3, padding=1),
                nn.GroupNorm(128, 128),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            channels = 128
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 16, NUM_CLASSES)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the classifier, [N, 2048]."""
        return self.features(images).flatten(1)


def plain_attention(feature: Tensor, power: int) -> list[Tensor]:
    spatial = feature.abs().pow(power).sum(1).flatten(1)
    channel = feature.abs().pow(power).sum((2, 3))
    return [nn.functional.normalize(spatial), nn.functional.normalize(channel)]


def plain_step(images: Tensor, real: list[Tensor], optimiser: torch.optim.Optimizer, iteration: int) -> float:
    """One step on leaf images [K, I, C, H, W] for the ten classes."""
    operations = parse_dsa_strategy("color_crop_cutout_flip_scale_rotate")
    device = images.device
    net = PlainNet().to(device).train()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    maps: list[Tensor] = []
    for module in net.features:
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    real_parts, synthetic_parts = [], []
    for c in range(NUM_CLASSES):
        rows = torch.randperm(len(real[c]))[: BATCH_REAL[0]]
        row = draw_params(
            operations, num_rows=1, height=HEIGHT, width=WIDTH, rng=stream(0, "bench", iteration, c)
        )
        params = torch.from_numpy(row).to(device)
        batch = real[c][rows].to(device)
        real_parts.append(augment(batch, params.expand(len(batch), -1)))
        synthetic_parts.append(augment(images[c], params.expand(images.shape[1], -1)))
    real_embedding = net.embed(torch.cat(real_parts)).detach()
    real_maps = [m.detach() for m in maps]
    maps.clear()
    synthetic_embedding = net.embed(torch.cat(synthetic_parts))

    def means(rows: Tensor) -> Tensor:
        return rows.view(NUM_CLASSES, -1, rows.shape[1]).mean(1)

    loss = 0.01 * (means(real_embedding) - means(synthetic_embedding)).square().sum()
    for real_map, synthetic_map in zip(real_maps[:-1], maps[:-1], strict=True):
        for a, b in zip(plain_attention(real_map, 4), plain_attention(synthetic_map, 4), strict=True):
            loss = loss + (means(a) - means(b)).square().sum()
    optimiser.zero_grad()
    (100 * loss).backward()
    optimiser.step()
    return loss.item()


BATCH_REAL = [128]


def make_plain(ipc: int, real: list[Tensor], device: torch.device) -> Callable[[int], None]:
    images = torch.stack([r[:ipc] for r in real]).to(device).requires_grad_()
    optimiser = torch.optim.SGD([images], lr=1.0, momentum=0.5)
    return lambda iteration: plain_step(images, real, optimiser, iteration) and None


def make_ours(
    ipc: int, real: list[Tensor], device: torch.device, overrides: dict[str, object]
) -> tuple[Callable[[int], None], DistillSettings]:
    asked = DistillSettings.model_validate(
        {
            "ipc": ipc,
            "iterations": 8000,
            "classes_per_group": NUM_CLASSES,
            "threads_per_actor": torch.get_num_threads(),
            "batch_real": BATCH_REAL[0],
            **overrides,
        }
    )
    settings = resolve_settings(
        asked,
        device_kind=device.type,
        channels=CHANNELS,
        height=HEIGHT,
        width=WIDTH,
        num_classes=NUM_CLASSES,
        symbols=False,
    )
    distiller = Atom(
        settings, channels=CHANNELS, height=HEIGHT, width=WIDTH, num_classes=NUM_CLASSES, device=device
    )
    class_ids, by_class = list(range(NUM_CLASSES)), dict(enumerate(real))
    state = distiller.start(class_ids, by_class)

    def step(iteration: int) -> None:
        nonlocal state
        state = distiller.advance(state, state.iteration + 1, unit=class_ids, real=by_class)

    return step, settings


def timed(step: Callable[[int], None], iteration: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(iteration)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def step_flop(ipc: int, batch_real: int) -> float:
    """Matrix arithmetic of a step: real forward, synthetic forward and backward to the images."""
    net = nets.build("convnet", channels=CHANNELS, image_size=(HEIGHT, WIDTH), num_classes=NUM_CLASSES)
    forward = 2.0 * nets.count_multiply_adds(net, channels=CHANNELS, image_size=(HEIGHT, WIDTH))
    # Backward to the images only: one product a layer more, since no weight has a gradient.
    return NUM_CLASSES * forward * (batch_real + 2 * ipc)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--batch-real", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="on")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    BATCH_REAL[0] = arguments.batch_real
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    real = [
        torch.randn(IMAGES_A_CLASS, CHANNELS, HEIGHT, WIDTH, generator=generator) for _ in range(NUM_CLASSES)
    ]
    print(f"{describe_hardware()}; torch {torch.__version__}; {arguments.threads} threads", flush=True)
    rows = []
    for ipc in arguments.ipc:
        plain = make_plain(ipc, real, device)
        ours, settings = make_ours(
            ipc, real, device, {"precision": arguments.precision, "compile": arguments.compile}
        )
        start = time.perf_counter()
        ours(0)
        warm_s = time.perf_counter() - start
        plain(0), ours(1)
        pairs = [(timed(plain, t, device), timed(ours, t, device)) for t in range(1, arguments.repeats + 1)]
        plain_s, ours_s = (statistics.median(column) for column in zip(*pairs, strict=True))
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        rate = matmul_rate(device, dtype)
        achieved = step_flop(ipc, arguments.batch_real) / ours_s
        rows.append(
            {
                "ipc": ipc,
                "batch_real": arguments.batch_real,
                "plain_ms": round(plain_s * 1e3, 1),
                "ours_ms": round(ours_s * 1e3, 1),
                "ratio": round(plain_s / ours_s, 2),
                "first_step_s": round(warm_s, 1),
                "precision": settings.precision,
                "compile": settings.compile,
                "gflops": round(achieved / 1e9, 1),
                "matmul_gflops": round(rate / 1e9, 1),
                "share_of_rate": round(achieved / rate, 3),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        record = {"hardware": describe_hardware(), "torch": torch.__version__, "threads": arguments.threads}
        arguments.out.write_text(
            json.dumps({**record, "repeats": arguments.repeats, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
