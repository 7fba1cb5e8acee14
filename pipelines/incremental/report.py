"""What an experiment tells: the table on the screen, JSON, the HTML page, and the runs in MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.continual import lossless
from apps.continual.findings import recommendations, suspicions
from apps.continual.report import render_continual
from apps.continual.results import (
    ON_STATISTICS,
    ContinualResults,
    Spread,
    Summary,
    on_whitening,
    summarise,
)
from apps.continual.stream import BLURRED, DOMAINS, PLAIN, RETURNING
from apps.page import listed
from pipelines.console.command import say
from pipelines.console.progress import format_duration, format_table, print_table
from pipelines.incremental.case import metric_name, orders_text, together
from pipelines.incremental.protocol import SET
from pipelines.incremental.run import ContinualRun
from pipelines.output.provenance import command_line
from pipelines.output.records import DISTILL_WORKER_S, maker_facts, times
from pipelines.sets import held_out
from pipelines.tracking import Tracker

REPORT, RESULTS = "report.html", "results.json"


def publish(run: ContinualRun, tracker: Tracker) -> int:
    """Print, write and record everything; returns how many cells failed."""
    results = collect(run)
    columns, rows = table(results.summaries)
    title = f"{results.stream}, memories of {run.case.plan.budget}{', compressed' if run.case.plan.compress else ''}"
    if rows:
        print_table(f"{title}: accuracy on {_judged(run)} images, %", columns, rows)
        for remark in remarks(results):
            say(remark)
    if results.failures:
        say()
        say("Failed; the other cells are reported, rerun the command to try again")
        for reason, names in _grouped(results.failures).items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            say(f"  {', '.join(names[:3])}{more}: {reason}")
    pictures = {
        memory: _picture(run, memory, run.case.plan.num_steps - 1) for memory in run.case.plan.memories
    }
    html = render_continual(
        results, title=title, memory_pictures={memory: png for memory, png in pictures.items() if png}
    )
    run.case.store.write_json(RESULTS, results.to_dict())
    run.case.store.write_text(REPORT, html)
    record(run, results, tracker, html=html)
    return len(results.failures)


def collect(run: ContinualRun) -> ContinualResults:
    """All cells of the run as they stand, with the summaries of the complete ones."""
    cells = run.trainings.results()
    spent = {memory: run.distiller.worker_seconds(memory) for memory in run.case.plan.distilled}
    seconds = {memory: found for memory, found in spent.items() if found is not None}
    if run.case.given is not None and run.case.given[1] is not None:
        seconds[SET] = run.case.given[1]
    names = run.case.real.train.class_names
    whitening = run.case.preprocessed.preprocess(run.case.preprocessed.name(run.case.plan.first)).zca
    return ContinualResults(
        stream=f"{run.case.real.source.title} in {_in_steps(run)}",
        protocol=run.case.protocol,
        num_steps=run.case.plan.num_steps,
        num_classes=run.case.real.train.num_classes,
        cells=tuple(cells),
        summaries=tuple(summarise(cells, seconds)),
        distil_seconds=seconds,
        facts=facts(run),
        failures=tuple((cell.name, reason) for cell, reason in run.trainings.failed.items()),
        score_on=_judged(run),
        steps={
            order: tuple(_arriving(run, step) for step in stream.steps)
            for order, stream in run.case.plan.streams.items()
        },
        class_images=dict(zip(names, run.case.judged.per_class_counts().tolist(), strict=True)),
        whitening_bytes=0 if whitening is None else whitening.num_bytes,
    )


def _in_steps(run: ContinualRun) -> str:
    """The steps of the stream, for its title."""
    case, number = run.case, run.case.plan.num_steps
    online = " in one pass" if case.command.stream.online else ""
    if case.lots.protocol == DOMAINS:
        return f"{number} steps of all classes, {listed(case.lots.names)}{online}"
    asked = case.command.stream
    sizes = tuple(map(len, case.plan.streams[case.plan.first].columns))
    if asked.return_after is not None:
        later = f"{asked.return_after} step{'s' if asked.return_after > 1 else ''}"
        return f"{number} steps, each class again {later} after it came{online}"
    each = " or ".join(map(str, sorted({*sizes}, reverse=True)))
    if sorted(sizes, reverse=True) != list(sizes) or max(sizes) > min(sizes) + 1:
        each = " + ".join(map(str, sizes))
    border = f", {100 * asked.blurred:g} % of their images in other steps" if asked.blurred else ""
    return f"{number} steps of {each} classes{border}{online}"


def _arriving(run: ContinualRun, step: Sequence[int]) -> tuple[str, ...]:
    """What comes at a step, for people: the look or session where it has all classes; else classes or their parts."""
    lots = run.case.lots
    if lots.protocol == DOMAINS:
        return (lots.names[step[0] // run.case.real.train.num_classes],)
    return tuple(lots.name(lot) for lot in step)


def table(summaries: tuple[Summary, ...]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table people see, a line a memory and learner."""
    columns = ["memory", "learner", "last, all classes", "mean of steps", "forgetting", "told the step", "n"]
    restated = any(row.other_on_seen_last for row in summaries)
    rows = [
        [
            row.memory,
            row.learner,
            _shown(row.on_seen_last),
            _shown(row.average_incremental),
            _shown(row.forgetting),
            _shown(row.task_final_average),
            str(row.n),
            f"{row.memory_images:,}",
            f"{row.memory_bytes / 1000:,.1f} kB",
            *([row.statistics, _shown(row.other_on_seen_last)] if restated else []),
        ]
        for row in summaries
    ]
    return [*columns, "images", "size", *(["statistics", "last, with the other"] if restated else [])], rows


def remarks(results: ContinualResults) -> list[str]:
    """What has to be said under the table."""
    restated = any(row.other_on_seen_last for row in results.summaries)
    whitening = [on_whitening(results.whitening_bytes)] if results.whitening_bytes else []
    told = [*suspicions(results), *recommendations(results)]
    return [*([ON_STATISTICS] if restated else []), *whitening, *told]


_PROTOCOLS = {
    PLAIN: "every class comes once, whole; the test images of a step are those of its classes",
    DOMAINS: "every step brings all classes in one look or session; its test images are those of that one",
    BLURRED: (
        "a share of the images of every class comes in other steps than its own; the test images of a step are those of"
        " the classes whose own it is"
    ),
    RETURNING: (
        "every class comes in two halves; the test images of a step are those of all its classes, so those of a class"
        " count in two steps, but once in the accuracy on all that was seen"
    ),
}
_ONCE = (
    "; in one pass: every image is trained on once, in mini-batches, and the memory changes after each of them (gdumb"
    " trains on what is left at the end of a step, joint on all images as often as ever)"
)
"""What the protocols mean, for people."""


def facts(run: ContinualRun) -> dict[str, str]:
    """What a reader needs to judge and repeat the run."""
    case = run.case
    command, real, train, learner = case.command, case.real, case.train_settings, case.all_learner_settings()
    validation = 0 if real.validation is None else len(real.validation.labels)
    whole = "all training images, those of classes to come among them, as the published protocols do"
    on_first = "the training images of the first step, so differently for each class order"
    found = {
        "protocol of the stream": (
            f"{case.protocol}: {_PROTOCOLS[case.lots.protocol]}{_ONCE if command.stream.online else ''}"
        ),
        "images": (
            f"{real.source.title}: {len(real.train.labels)} training, {validation} validation,"
            f" {len(real.test.labels)} test images; accuracies are on the {_judged(run)} images of classes seen"
        ),
        "class orders": orders_text(command, run.case.lots),
        "trainings": f"{command.stream.seeds} of each class order, each from random weights of its own",
        "spread": (
            "standard deviation over class orders and trainings; random and reservoir are drawn anew for each, herding,"
            " kcenter, distilled and set are the same images for all (--seed chooses others)"
        ),
        "network": f"{command.network}, with outputs for all {real.train.num_classes} classes from the first step",
        "preprocessing": (
            f"fitted on {whole if command.stream.preprocess_on == 'all' else on_first};"
            f" ZCA {run.case.preprocess_settings.zca}"
        ),
        "memory": (
            f"{run.case.plan.budget}; real images are uint8 pixels, distilled ones {command.stream.storage}"
            f" with factor {command.distill.factor}{_compressed(run)}; a class that has to shrink keeps its first"
            " images in the order in which it was chosen, distilled ones in herding order"
        ),
        "gdumb": (f"{train.told}; joint: {learner['joint_epochs']} epochs, otherwise the same"),
        "er, er-ace, der++, finetune": (
            f"{_epochs(learner['step_epochs'])} epochs a step, batch {command.learner.batch_current} and"
            f" {command.learner.batch_memory} of the memory, SGD {command.learner.lr_replay:g}, momentum"
            f" {command.learner.momentum_replay:g}, weight decay {command.learner.weight_decay_replay:g}, DSA"
            f" {learner['replay_dsa_strategy']}; der++ alpha {command.learner.der_alpha:g}, beta"
            f" {command.learner.der_beta:g}"
        ),
    }
    if run.case.plan.distilled:
        found["distillation"] = _distillation(run)
    if run.case.given is not None:
        found["set"] = _given_set(run)
    return {**found, "notes": " ".join(run.case.plan.notes) or "none", **_circumstances(run)}


def _compressed(run: ContinualRun) -> str:
    if not run.case.plan.compress:
        return ""
    return f", each as a lossless file ({lossless.codec()}) where that is smaller, whose bytes are counted"


def _distillation(run: ContinualRun) -> str:
    command = run.case.command
    sizes = sorted({settings.ipc for settings in run.distil_settings})
    shown = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    of_all = together(run.distil_settings)
    alone = "alone, once for all class orders"
    grouped = f"in groups of {command.distill.classes_per_group} of its step, for each class order"
    return (
        f"method {of_all['method']}, {of_all['iterations']} iterations, rate {of_all['lr_img']}, network"
        f" {command.distil_network}, {of_all['precision']}, seed {command.distill.seed}, {shown} images a class when it"
        f" arrives; each class {alone if command.distill.classes_per_group == 1 else grouped}"
    )


def _epochs(values: str) -> str:
    """Numbers of epochs, most first: those of one step if all are equal, else of the steps with few and many images."""
    numbers = sorted({int(value) for value in values.split()})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} (more for fewer images)"


def _given_set(run: ContinualRun) -> str:
    assert run.case.given is not None, "asked for where there is one"
    given = run.case.given[0]
    factor = f", factor {given.factor}" if given.factor > 1 else ""
    seen = (
        ""
        if held_out(given, run.case.real)
        else (
            "; distilled from other training images than those of this run, so it may have seen validation images"
        )
    )
    return f"{run.case.command.set}: {given.method}, {given.ipc} images a class{factor}{seen}"


def _circumstances(run: ContinualRun) -> dict[str, str]:
    spent = times(run.case.store)
    labels = {"distil_wait_s": "waiting for distillation", "learn_s": "learners"}
    walls = [f"{label} {format_duration(spent[key])}" for key, label in labels.items() if key in spent]
    return {
        **maker_facts(run.case.store),
        "wall time": ", ".join(walls) or "nothing was left to do",
        "command": command_line("atom-continual"),
    }


def record(run: ContinualRun, results: ContinualResults, tracker: Tracker, *, html: str) -> None:
    """The parent run's metrics and artifacts, and one child run a cell."""
    tracker.log_text(html, REPORT)
    tracker.log_dict(results.to_dict(), RESULTS)
    tracker.log_metrics({f"time/{name}": seconds for name, seconds in times(run.case.store).items()})
    tracker.log_metrics({f"{memory}/{DISTILL_WORKER_S}": s for memory, s in results.distil_seconds.items()})
    for row in results.summaries:
        tracker.log_metrics(_numbers(row))
    if results.summaries:
        said = "".join(f"\n\n{remark}" for remark in remarks(results))
        tracker.set_note(f"```\n{format_table(results.stream, *table(results.summaries))}\n```{said}")
    if run.case.command.stream.pictures:
        tracker.log_artifacts(lambda folder: _write_pictures(run, folder), path="memories")
    failures = dict(results.failures)
    for cell in results.cells:
        params = {
            **vars(cell.cell),
            "network": run.case.command.network,
            "budget": run.case.command.stream.budget,
        }
        with tracker.child(cell.cell.name, params=params) as child:
            for step in cell.steps:
                child.log_metrics(
                    {
                        "acc_seen": step.accuracy_on_seen,
                        "acc_average": sum(step.class_row) / len(step.class_row),
                        "acc_told_the_step": sum(step.task_row) / len(step.task_row),
                        "memory/images": step.memory_images,
                        "memory/bytes": step.memory_bytes,
                        "time/train_s": step.train_seconds,
                        **{f"acc_step/{j:02d}": value for j, value in enumerate(step.class_row)},
                        **({} if step.other_on_seen is None else {"acc_seen_other": step.other_on_seen}),
                    },
                    step=step.step,
                )
            if cell.cell.name in failures:
                child.mark("FAILED", reason=failures[cell.cell.name])


def _numbers(row: Summary) -> dict[str, float]:
    """Means and deviations of one memory and learner under names that MLflow takes."""
    found: dict[str, float] = {
        "memory_images": row.memory_images,
        "memory_bytes": row.memory_bytes,
        "n": row.n,
    }
    for name, value in vars(row).items():
        if isinstance(value, tuple):
            found[f"{name}_mean"] = value[0]
            if value[1] is not None:
                found[f"{name}_std"] = value[1]
    return {f"{row.memory}/{metric_name(row.learner)}/{name}": number for name, number in found.items()}


def _picture(run: ContinualRun, memory: str, step: int) -> bytes | None:
    if not run.case.command.stream.pictures:
        return None
    name = run.memories.picture_name(memory, step)
    return run.case.store.read_bytes(name) if run.case.store.exists(name) else None


def _write_pictures(run: ContinualRun, folder: Path) -> None:
    for memory in run.case.plan.memories:
        for step in range(run.case.plan.num_steps):
            if png := _picture(run, memory, step):
                (folder / f"{memory}-step{step}.png").write_bytes(png)


def _grouped(failures: tuple[tuple[str, str], ...]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in failures:
        found.setdefault(reason, []).append(name)
    return found


def _judged(run: ContinualRun) -> str:
    return run.case.command.stream.score_on


def _shown(value: Spread | None) -> str:
    if value is None:
        return "–"
    return f"{value[0]:.1f}" if value[1] is None else f"{value[0]:.1f} ± {value[1]:.1f}"
