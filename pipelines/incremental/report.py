"""What an experiment tells: the table on the screen, JSON, the HTML page, and the runs in MLflow."""

from collections.abc import Mapping
from pathlib import Path

from apps.continual import lossless
from apps.continual.findings import suspicions
from apps.continual.report import render_continual
from apps.continual.results import (
    ON_STATISTICS,
    ContinualResults,
    Spread,
    Summary,
    on_whitening,
    summarise,
)
from pipelines.console.command import say
from pipelines.console.progress import format_duration, format_table, print_table
from pipelines.incremental.job import ContinualJob, metric_name, orders_text, together
from pipelines.incremental.plan import SET
from pipelines.output.provenance import command_line
from pipelines.output.records import DISTILL_WORKER_S, maker_facts, times
from pipelines.sets import held_out
from pipelines.tracking import Tracker

REPORT, RESULTS = "report.html", "results.json"


def publish(job: ContinualJob, tracker: Tracker) -> int:
    """Print, write and record everything; returns how many cells failed."""
    results = collect(job)
    columns, rows = table(results.summaries)
    title = f"{results.stream}, memories of {job.plan.budget}{', compressed' if job.plan.compress else ''}"
    if rows:
        print_table(f"{title}: accuracy on {_judged(job)} images, %", columns, rows)
        for remark in remarks(results):
            say(remark)
    if results.failures:
        say()
        say("Failed; the other cells are reported, rerun the command to try again")
        for reason, names in _grouped(results.failures).items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            say(f"  {', '.join(names[:3])}{more}: {reason}")
    pictures = {memory: _picture(job, memory, job.plan.num_steps - 1) for memory in job.plan.memories}
    html = render_continual(
        results, title=title, memory_pictures={memory: png for memory, png in pictures.items() if png}
    )
    job.store.write_json(RESULTS, results.to_dict())
    job.store.write_text(REPORT, html)
    record(job, results, tracker, html=html)
    return len(results.failures)


def collect(job: ContinualJob) -> ContinualResults:
    """All cells of the run as they stand, with the summaries of the complete ones."""
    cells = job.cells.results()
    spent = {memory: job.distiller.worker_seconds(memory) for memory in job.plan.distilled}
    seconds = {memory: found for memory, found in spent.items() if found is not None}
    if job.given is not None and job.given[1] is not None:
        seconds[SET] = job.given[1]
    sizes = job.plan.step_sizes
    each = " or ".join(map(str, sorted({*sizes}, reverse=True)))
    if sorted(sizes, reverse=True) != list(sizes) or max(sizes) > min(sizes) + 1:
        each = " + ".join(map(str, sizes))
    names = job.real.train.class_names
    whitening = job.views.preprocess(job.views.name(job.plan.first)).zca
    return ContinualResults(
        stream=f"{job.real.source.title} in {job.plan.num_steps} steps of {each} classes",
        num_steps=job.plan.num_steps,
        num_classes=job.real.train.num_classes,
        cells=tuple(cells),
        summaries=tuple(summarise(cells, seconds)),
        distil_seconds=seconds,
        facts=facts(job),
        failures=tuple((cell.name, reason) for cell, reason in job.cells.failed.items()),
        score_on=_judged(job),
        steps={
            order: tuple(tuple(names[c] for c in classes) for classes in stream.steps)
            for order, stream in job.plan.streams.items()
        },
        class_images=dict(zip(names, job.judged.per_class_counts().tolist(), strict=True)),
        whitening_bytes=0 if whitening is None else whitening.num_bytes,
    )


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
    return [*([ON_STATISTICS] if restated else []), *whitening, *suspicions(results)]


def facts(job: ContinualJob) -> dict[str, str]:
    """What a reader needs to judge and repeat the run."""
    command, real, train, learner = job.command, job.real, job.train_settings, job.all_learner_settings()
    validation = 0 if real.validation is None else len(real.validation.labels)
    whole = "all training images, those of classes to come among them, as the published protocols do"
    on_first = "the training images of the first step, so differently for each class order"
    found = {
        "images": (
            f"{real.source.title}: {len(real.train.labels)} training, {validation} validation,"
            f" {len(real.test.labels)} test images; accuracies are on the {_judged(job)} images of classes seen"
        ),
        "class orders": orders_text(command),
        "trainings": f"{command.seeds} of each class order, each from random weights of its own",
        "spread": (
            "standard deviation over class orders and trainings; random and reservoir are drawn anew for each, herding,"
            " kcenter, distilled and set are the same images for all (--seed chooses others)"
        ),
        "network": f"{command.network}, with outputs for all {real.train.num_classes} classes from the first step",
        "preprocessing": (
            f"fitted on {whole if command.preprocess_on == 'all' else on_first};"
            f" ZCA {job.preprocess_settings.zca}"
        ),
        "memory": (
            f"{job.plan.budget}; real images are uint8 pixels, distilled ones {command.storage}"
            f" with factor {command.factor}{_compressed(job)}; a class that has to shrink keeps its first images in the"
            " order in which it was chosen, distilled ones in herding order"
        ),
        "gdumb": (
            f"{train.epochs} epochs, batch {train.batch_train}, SGD {train.lr_net:g}, momentum"
            f" {train.momentum_net:g}, weight decay {train.weight_decay:g}, DSA {train.eval_dsa_strategy},"
            f" {train.eval_precision}; joint: {learner['joint_epochs']} epochs, otherwise the same"
        ),
        "er, er-ace, der++, finetune": (
            f"{_epochs(learner['step_epochs'])} epochs a step, batch {command.batch_current} and"
            f" {command.batch_memory} of the memory, SGD {command.lr_replay:g}, momentum"
            f" {command.momentum_replay:g}, weight decay {command.weight_decay_replay:g}, DSA"
            f" {learner['replay_dsa_strategy']}; der++ alpha {command.der_alpha:g}, beta {command.der_beta:g}"
        ),
    }
    if job.plan.distilled:
        found["distillation"] = _distillation(job)
    if job.given is not None:
        found["set"] = _given_set(job)
    return {**found, "left out": " ".join(job.plan.notes) or "nothing", **_circumstances(job)}


def _compressed(job: ContinualJob) -> str:
    if not job.plan.compress:
        return ""
    return f", each as a lossless file ({lossless.codec()}) where that is smaller, whose bytes are counted"


def _distillation(job: ContinualJob) -> str:
    command = job.command
    sizes = sorted({settings.ipc for settings in job.distil_settings})
    shown = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    of_all = together(job.distil_settings)
    alone = "alone, once for all class orders"
    grouped = f"in groups of {command.classes_per_group} of its step, for each class order"
    return (
        f"mode {of_all['mode']}, {of_all['iterations']} iterations, rate {of_all['lr_img']}, network"
        f" {command.distil_network}, {of_all['precision']}, seed {command.seed}, {shown} images a class when it"
        f" arrives; each class {alone if command.classes_per_group == 1 else grouped}"
    )


def _epochs(values: str) -> str:
    """Numbers of epochs, most first: those of one step if all are equal, else of the steps with few and many images."""
    numbers = sorted({int(value) for value in values.split()})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} (more for fewer images)"


def _given_set(job: ContinualJob) -> str:
    assert job.given is not None, "asked for where there is one"
    given = job.given[0]
    factor = f", factor {given.factor}" if given.factor > 1 else ""
    seen = (
        ""
        if held_out(given, job.real)
        else (
            "; distilled from other training images than those of this run, so it may have seen validation images"
        )
    )
    return f"{job.command.set}: {given.method}, {given.ipc} images a class{factor}{seen}"


def _circumstances(job: ContinualJob) -> dict[str, str]:
    spent = times(job.store)
    labels = {"distil_wait_s": "waiting for distillation", "learn_s": "learners"}
    walls = [f"{label} {format_duration(spent[key])}" for key, label in labels.items() if key in spent]
    return {
        **maker_facts(job.store),
        "wall time": ", ".join(walls) or "nothing was left to do",
        "command": command_line("atom-continual"),
    }


def record(job: ContinualJob, results: ContinualResults, tracker: Tracker, *, html: str) -> None:
    """The parent run's metrics and artifacts, and one child run a cell."""
    tracker.log_text(html, REPORT)
    tracker.log_dict(results.to_dict(), RESULTS)
    tracker.log_metrics({f"time/{name}": seconds for name, seconds in times(job.store).items()})
    tracker.log_metrics({f"{memory}/{DISTILL_WORKER_S}": s for memory, s in results.distil_seconds.items()})
    for row in results.summaries:
        tracker.log_metrics(_numbers(row))
    if results.summaries:
        said = "".join(f"\n\n{remark}" for remark in remarks(results))
        tracker.set_note(f"```\n{format_table(results.stream, *table(results.summaries))}\n```{said}")
    if job.command.pictures:
        tracker.log_artifacts(lambda folder: _write_pictures(job, folder), path="memories")
    failures = dict(results.failures)
    for cell in results.cells:
        params = {**vars(cell.cell), "network": job.command.network, "budget": job.command.budget}
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


def _picture(job: ContinualJob, memory: str, step: int) -> bytes | None:
    if not job.command.pictures:
        return None
    name = job.memories.picture_name(memory, step)
    return job.store.read_bytes(name) if job.store.exists(name) else None


def _write_pictures(job: ContinualJob, folder: Path) -> None:
    for memory in job.plan.memories:
        for step in range(job.plan.num_steps):
            if png := _picture(job, memory, step):
                (folder / f"{memory}-step{step}.png").write_bytes(png)


def _grouped(failures: tuple[tuple[str, str], ...]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in failures:
        found.setdefault(reason, []).append(name)
    return found


def _judged(job: ContinualJob) -> str:
    return job.command.score_on


def _shown(value: Spread | None) -> str:
    if value is None:
        return "–"
    return f"{value[0]:.1f}" if value[1] is None else f"{value[0]:.1f} ± {value[1]:.1f}"
