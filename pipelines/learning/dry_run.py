"""What a step would need, in images, bytes and time, by a few iterations and batches done here."""

import time

import numpy as np
import torch

from apps.continual.exemplars import image_bytes
from apps.continual.learner import RESTARTING
from apps.continual.settings import LearnerSettings
from apps.learner.serving import body_of
from apps.learner.settings import DISTILLED
from atom.device import kind_of, resolve_device, use_threads
from atom.methods.lookup import find_method
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from pipelines.console.command import say
from pipelines.console.progress import format_duration, print_table
from pipelines.learning.memories import Plan, white_of
from pipelines.learning.step import Step, comparable, other_kind

_ITERATIONS, _BATCHES = 2, 3


def say_needs(step: Step) -> int:
    """Say it, write nothing; returns the exit code.

    Raises:
        AtomError: what the step itself would be refused for.
    """
    device = resolve_device()
    plan = step.plan(kind_of(device))
    number = {label: plan.to_keep(label, step.kind) for label in step.real.train}
    rows = []
    for label, images in step.real.train.items():
        name = step.real.classes[label]
        what = "comes back" if label < step.real.num_old else "new"
        rows.append((name, what, len(images), len(step.real.kept_tests.get(label, ())), number[label]))
    print_table(
        f"Version {step.number} would learn",
        ["class", "", "images to learn", "tests to keep", f"images in memory ({step.kind})"],
        rows,
    )
    compared = comparable(step, plan) if step.real.validation is not None else []
    distils = [number] if step.kind == DISTILLED else []
    if compared and other_kind(step.kind) == DISTILLED:
        distils += [
            {n: plan.within(n, DISTILLED, memory_bytes(plan, n, step.kind, number[n])) for n in compared}
        ]
    with use_threads(1):
        distil_s = sum(_distil_seconds(plan, one, device) for one in distils)
        learn_s = _learn_seconds(step, plan, device, plan.choices.learner)
        compare_s = 2 * _learn_seconds(step, plan, device, "gdumb") if compared else 0.0
    memory = sum(memory_bytes(plan, label, step.kind, most) for label, most in number.items())
    tests = sum(images.nbytes for images in step.real.kept_tests.values())
    held = 4 * int(np.prod(plan.shape)) * len(step.real.current.labels_N)
    say(
        f"About {format_duration(distil_s)} of distillation on one worker, classes side by side on several, and"
        f" {format_duration(learn_s)} of learning; {held / 1e6:.0f} MB for the preprocessed images. On disk about"
        f" {memory / 1e3:.1f} kB for the memory of these classes and {tests / 1e3:.1f} kB for their test images, beside"
        " the network. Nothing was written."
    )
    if compared:
        own = ", distillation for the comparison alone included above" if step.kind != DISTILLED else ""
        say(
            f"--validation-frac takes {format_duration(compare_s)} more, for two networks that learn from memory"
            f" alone{own}."
        )
    return 0


def memory_bytes(plan: Plan, label: int, kind: str, number: int) -> int:
    """Bytes on disk of a class of the step in so many images at most; compressed ones fill their room."""
    if plan.room is not None:
        return plan.room
    if kind != DISTILLED:
        old = plan.old[label].num_images if label in plan.old else 0
        number = min(number, len(plan.real.train[label]) + old)
    return number * image_bytes(plan.shape, storage=plan.choices.storage if kind == DISTILLED else "uint8")


def _distil_seconds(plan: Plan, number: dict[int, int], device: torch.device) -> float:
    """Of all classes, one after the other, from two iterations of each number of images."""
    channels, height, width = plan.shape
    total = 0.0
    for ipc in sorted(set(number.values())):
        settings = plan.settings(ipc)
        label = next(label for label, wanted in number.items() if wanted == ipc)
        method = find_method(settings.method)(
            settings,
            channels=channels,
            height=height,
            width=width,
            num_classes=len(plan.real.classes),
            device=device,
        )
        known = {"unit": (label,), "real": {label: white_of(plan, label).to(device)}, "prepared": {}}
        state = method.start(given=None, **known)
        state = method.advance(state=state, until=1, on_iteration=lambda _: None, **known)
        begun_s = time.perf_counter()
        method.advance(state=state, until=1 + _ITERATIONS, on_iteration=lambda _: None, **known)
        each_s = (time.perf_counter() - begun_s) / _ITERATIONS
        classes = sum(wanted == ipc for wanted in number.values())
        total += classes * each_s * (settings.iterations or 0)
    return total


def _learn_seconds(step: Step, plan: Plan, device: torch.device, learner: str) -> float:
    """From a few plain training steps of the size that the learner takes."""
    images = len(step.real.current.labels_N)
    settings = LearnerSettings.model_validate(step.learner.settings["training"]).resolved(
        device_kind=kind_of(device), step_images=images, seen_images=images, symbols=step.learner.symbols
    )
    if learner in RESTARTING:
        asked = EvaluateSettings.model_validate(step.learner.settings["evaluate"])
        evaluate = resolve_evaluation(asked, device_kind=kind_of(device), symbols=step.learner.symbols)
        kept = sum(one.num_images for one in plan.old.values())
        kept += sum(plan.to_keep(label, step.kind) for label in step.real.train)
        batch, steps = min(evaluate.batch, kept), (evaluate.epochs or 1) * -(-kept // evaluate.batch)
    else:
        replays = 0 if step.parent is None else settings.batch_memory
        batch = settings.batch_current + replays
        steps = (settings.step_epochs or 1) * -(-images // settings.batch_current)
    net = body_of(step.learner, step.network).build(len(step.real.classes)).to(device)
    pixels = step.real.current.images_NCHW[np.arange(max(2, batch)) % images]
    images_BCHW = step.preprocess.apply(pixels).to(device)
    begun_s = time.perf_counter()
    for number in range(1 + _BATCHES):
        if number == 1:
            begun_s = time.perf_counter()
        net(images_BCHW).logsumexp(dim=1).mean().backward()
        net.zero_grad()
    return steps * (time.perf_counter() - begun_s) / _BATCHES


__all__ = ["memory_bytes", "say_needs"]
