"""A given set, a preprocessing of the first step, validation images: one run, each accuracy computed here once more."""

# N images, M stored images, C channels, H height, W width

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import run_here
from safetensors.torch import load_file

from apps.continual.learner import learn, predict_seen
from apps.continual.metrics import predictions_to_row
from apps.continual.results import ContinualResults
from apps.continual.selection import order_distilled
from apps.continual.settings import LearnerSettings
from apps.continual.state import StepData
from apps.continual.stream import class_stream
from atom.data import ImageSet, RealData, load
from atom.distilled import DistilledSet
from atom.methods.method import Part
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from pipelines.console.commands import ContinualCommand
from pipelines.incremental.case import ContinualCase
from pipelines.incremental.distillation import Distiller
from pipelines.incremental.memories import Memories
from pipelines.incremental.plan import plan
from pipelines.output.records import DISTILL_WORKER_S, add_seconds
from pipelines.output.store import Store
from pipelines.workers.resources import ActorSize

NETWORK, EPOCHS, BUDGET, SET_IPC, STEPS, ORDERS = "convnet-w8-d2", 8, 3, 2, 2, 2
ASKED = (
    *("--dataset", "digits", "--steps", STEPS, "--orders", ORDERS, "--budget", f"{BUDGET}/class"),
    *("--network", NETWORK, "--distil-network", NETWORK, "--iterations", 4, "--batch-real", 16),
    *("--epochs", EPOCHS, "--eval-precision", "float32", "--storage", "float32"),
    *("--preprocess-on", "first-step", "--validation-frac", 0.1, "--score-on", "validation"),
    *("--memories", "set", "distilled"),
)


@pytest.fixture(scope="module")
def real() -> RealData:
    return load("digits", data_dir=Path("unused")).hold_out(0.1)


@pytest.fixture(scope="module")
def given(real: RealData) -> DistilledSet:
    """Real images with noise and soft labels, under a preprocessing of its own; fewer a class than the budget."""
    rows = np.concatenate([real.train.indices_of(c)[:SET_IPC] for c in range(10)])
    preprocess = Preprocess(torch.tensor([0.4]), torch.tensor([0.2]))
    noise = np.random.default_rng(5).normal(size=(len(rows), 1, 8, 8)).astype(np.float32)
    return DistilledSet(
        images_NCHW=preprocess.apply(real.train.images[rows]) + torch.from_numpy(noise),
        labels=torch.arange(10).repeat_interleave(SET_IPC),
        soft_labels=torch.from_numpy(np.random.default_rng(6).dirichlet(np.full(10, 0.3), len(rows))).float(),
        class_names=real.train.class_names,
        ipc=SET_IPC,
        method="noise",
        preprocess=preprocess,
    )


@pytest.fixture(scope="module")
def done(
    given: DistilledSet, ready_tables: None, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """Output and lines of the run."""
    folder = tmp_path_factory.mktemp("options")
    given.save(folder / "set")
    code, lines, errors = run_here(
        *ASKED, "--set", folder / "set", "--output", folder / "out", script="continual"
    )
    assert code == 0, errors
    return folder / "out", lines


def results_of(output: Path) -> ContinualResults:
    return ContinualResults.from_dict(json.loads((output / "results.json").read_text()))


def fitted(output: Path, order: int) -> Preprocess:
    return Preprocess.from_tensors(load_file(output / "views" / f"order{order}" / "preprocess.safetensors"))


def recipe_folder(output: Path, order: int) -> Path:
    (found,) = (output / "distilled").glob(f"atom-ipc{BUDGET}-order{order}-*")
    return found


def kept_of_class(output: Path, given: DistilledSet, memory: str, order: int, class_id: int) -> torch.Tensor:
    """The images of a class that a memory should hold, float32 [M, C, H, W], in the run's preprocessing."""
    if memory == "set":
        white_NCHW = fitted(output, order).apply_unbounded(given.preprocess.invert(given.images_NCHW))
        white_MCHW = white_NCHW[given.labels == class_id]
    else:
        (path,) = recipe_folder(output, order).glob(f"checkpoints/unit_{class_id:04d}.*")
        white_MCHW = load_file(path)["state/images"][0]
    return white_MCHW[torch.from_numpy(order_distilled(white_MCHW, seed=0, network=NETWORK))]


def soft_targets_of(given: DistilledSet, order_M: torch.Tensor, seen: list[int]) -> torch.Tensor:
    """Labels over the classes seen so far, each row a distribution, of the set's images in some order."""
    assert given.soft_labels is not None
    soft_MK = given.soft_labels[order_M].clone()
    soft_MK[:, [c for c in range(10) if c not in seen]] = 0
    return soft_MK / soft_MK.sum(dim=1, keepdim=True)


def expected_rows(
    real: RealData, output: Path, given: DistilledSet, *, memory: str, order: int, step: int
) -> tuple[list[float], list[float]]:
    """Both rows of accuracies of gdumb after a step, trained and tested in this process."""
    steps = class_stream(10, num_steps=STEPS, order_seed=order).steps[: step + 1]
    seen = sorted(c for classes in steps for c in classes)
    kept = {c: kept_of_class(output, given, memory, order, c) for c in seen}
    images_MCHW = torch.cat(list(kept.values()))
    labels_M = torch.tensor([c for c in seen for _ in range(len(kept[c]))])
    asked = EvaluateSettings(epochs=EPOCHS, eval_precision="float32")
    settings = resolve_evaluation(asked, device_kind="cpu", symbols=real.symbols)
    train: Any = {"network": NETWORK, "train_settings": settings}
    told: Any = {"settings": LearnerSettings(), "symbols": real.symbols}
    soft = None
    if memory == "set":
        # A network trained on its classes alone, or on what is said of classes to come, would be another.
        white_NCHW = fitted(output, order).apply_unbounded(given.preprocess.invert(given.images_NCHW))
        rows = {c: torch.nonzero(given.labels == c).flatten() for c in seen}
        kept_rows = [
            rows[c][torch.from_numpy(order_distilled(white_NCHW[rows[c]], seed=0, network=NETWORK))]
            for c in seen
        ]
        soft = soft_targets_of(given, torch.cat(kept_rows), seen)
    data = StepData(step, steps[-1], tuple(seen), 10, memory_after=(images_MCHW, labels_M), soft_targets=soft)
    device = torch.device("cpu")
    state = learn("gdumb", None, data, seed=1000 * order, device=device, **told, **train)
    assert real.validation is not None
    rows = np.concatenate([real.validation.indices_of(c) for c in seen])
    white_NCHW = fitted(output, order).apply(real.validation.images[rows])
    logits_NK = predict_seen(state, images_TCHW=white_NCHW, num_classes=10, device=device, **train).numpy()
    labels_N = real.validation.labels[rows]
    one, told = (predictions_to_row(logits_NK, labels_N, steps, masked=masked) for masked in (False, True))
    return one.tolist(), told.tolist()


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestOptions:
    @pytest.mark.parametrize("memory", ["set", "distilled"])
    def test_accuracies_are_those_of_networks_trained_here(
        self, memory: str, real: RealData, given: DistilledSet, done: tuple[Path, list[str]]
    ) -> None:
        output, _ = done
        cells = [result for result in results_of(output).cells if result.cell.memory == memory]
        assert [result.cell.order for result in cells] == list(range(ORDERS))
        for result in cells:
            for step in result.steps:
                rows = expected_rows(
                    real, output, given, memory=memory, order=result.cell.order, step=step.step
                )
                assert (list(step.class_row), list(step.task_row)) == rows

    def test_each_class_order_is_preprocessed_by_its_first_step_and_distilled_under_that(
        self, real: RealData, done: tuple[Path, list[str]]
    ) -> None:
        output, _ = done
        for order in range(ORDERS):
            first = class_stream(10, num_steps=STEPS, order_seed=order).steps[0]
            pixels_NCHW = real.train.images[np.isin(real.train.labels, first)] / 255
            found = fitted(output, order)
            assert found.mean_C.numpy() == pytest.approx(pixels_NCHW.mean(axis=(0, 2, 3)), rel=1e-5)
            recorded = json.loads((recipe_folder(output, order) / "settings.json").read_text())
            assert recorded["preprocess"] == found.digest
        assert fitted(output, 0).digest != fitted(output, 1).digest
        assert len(list((output / "distilled").iterdir())) == ORDERS

    def test_sizes_seconds_and_scored_images_are_told(self, done: tuple[Path, list[str]]) -> None:
        output, lines = done
        results = results_of(output)
        sizes = {row.memory: (row.memory_images, row.memory_bytes) for row in results.summaries}
        assert sizes == {
            "set": (10 * SET_IPC, 10 * SET_IPC * 4 * (64 + 10)),
            "distilled": (10 * BUDGET, 10 * BUDGET * 4 * 64),
        }
        seconds = [
            json.loads((recipe_folder(output, order) / "times.json").read_text())[DISTILL_WORKER_S]
            for order in range(ORDERS)
        ]
        assert results.distil_seconds == {"distilled": pytest.approx(sum(seconds))}
        assert results.score_on == "validation"
        page = (output / "report.html").read_text()
        assert "Accuracies are on validation images" in page
        assert "test images of step" not in page
        assert any("it may have seen validation images" in line for line in lines)


def distiller(folder: Path, *, real: RealData | None = None, **asked: Any) -> Distiller:
    """That of a case on digits, or other images, whose output is a folder."""
    command = ContinualCommand.of(**{"memories": ("distilled", "distilled-dm"), **asked})
    real = real or load("digits", data_dir=Path("unused"))
    size = ActorSize(1, cpus=1, gpus=0)
    decided = plan(command, real, num_steps=5)
    return Distiller(ContinualCase(command, decided, None, real, Store.open(folder), size, size, "cpu"))


def test_budgets_seeds_and_modes_that_share_an_output_have_seconds_of_their_own(tmp_path: Path) -> None:
    small, large = distiller(tmp_path, budget="2/class"), distiller(tmp_path, budget="4/class")
    assert small.worker_seconds("distilled") is None
    for _ in range(2):
        add_seconds(small._store(small.recipe("distilled", 0, 0, 4)), DISTILL_WORKER_S, 1.5)
    add_seconds(large._store(large.recipe("distilled", 0, 0, 4)), DISTILL_WORKER_S, 10.0)
    assert small.worker_seconds("distilled") == 3.0
    assert large.worker_seconds("distilled") == 10.0
    assert small.worker_seconds("distilled-atom") == 3.0
    assert small.worker_seconds("distilled-dm") is None
    assert distiller(tmp_path, budget="2/class", orders=1).worker_seconds("distilled") == 3.0
    assert distiller(tmp_path, budget="2/class", seed=1).worker_seconds("distilled") is None


def test_shared_budget_adds_up_its_lots_and_is_unknown_while_one_is_missing(tmp_path: Path) -> None:
    shared = distiller(tmp_path, budget="60 images", orders=2)
    recipes = {
        recipe for o in range(2) for step in range(5) for recipe in shared.recipes_of("distilled", o, step)
    }
    assert len(recipes) > 2
    for number, one in enumerate(sorted(recipes, key=lambda one: one.ipc)):
        assert shared.worker_seconds("distilled") is None
        add_seconds(shared._store(one), DISTILL_WORKER_S, 2.0**number)
    assert shared.worker_seconds("distilled") == 2.0 ** len(recipes) - 1


def one_rare_class(images: int) -> RealData:
    """Digits, 100 images of each class, but of class 3 fewer."""
    digits = load("digits", data_dir=Path("unused"))
    rows = [digits.train.indices_of(c)[: images if c == 3 else 100] for c in range(10)]
    return digits.with_images(digits.train.subset(np.concatenate(rows)), digits.test)


def kept_of_rare(folder: Path, **asked: Any) -> dict[str, tuple[list[int], int]]:
    """Images of each class and bytes that two memories hold after the last step; the distilled ones are noise."""
    made = distiller(
        folder, real=one_rare_class(8), memories=("random", "distilled"), storage="uint8", orders=1, **asked
    )
    rng = np.random.default_rng(0)
    for step in range(5):
        for recipe, groups in made.recipes(step).items():
            for class_id in (c for group in groups for c in group):
                made.parts[recipe, class_id] = Part(rng.normal(size=(recipe.ipc, 1, 8, 8)).astype(np.float32))
    memories = Memories(made._case, made)
    kept = {memory: memories._made((memory, 0, 0), 4) for memory in ("random", "distilled")}
    return {name: ([one[c].num_images for c in range(10)], one.num_bytes) for name, one in kept.items()}


@pytest.mark.parametrize("budget", ["200 images", "20/class", "12.8kB"])
@pytest.mark.parametrize("group", [1, 2])
def test_a_rare_class_keeps_what_it_has_and_shrinks_no_other_class_of_any_memory(
    budget: str, group: int, tmp_path: Path
) -> None:
    kept = kept_of_rare(tmp_path, budget=budget, classes_per_group=group, distil_network="convnet-w8-d2")
    expected = [8 if class_id == 3 else 20 for class_id in range(10)]
    assert kept == {"random": (expected, 188 * 64), "distilled": (expected, 188 * 64)}


def compressed(folder: Path, **asked: Any) -> tuple[Memories, Distiller]:
    """Memories of 24 x 24 pixels, where files are smaller than values, the distilled ones made of dim noise."""
    digits, rng = load("digits", data_dir=Path("unused")), np.random.default_rng(0)
    large = [np.kron(part.images, np.ones((1, 1, 3, 3), np.uint8)) for part in (digits.train, digits.test)]
    real = digits.with_images(
        *(
            ImageSet.create(images, part.labels, part.class_names)
            for images, part in zip(large, (digits.train, digits.test), strict=True)
        )
    )
    made = distiller(folder, real=real, storage="uint8", orders=1, compress=True, **asked)
    fitted = Preprocess.fit(real.train.images, zca=False)
    for step in range(5):
        for recipe, groups in made.recipes(step).items():
            for class_id in (c for group in groups for c in group):
                pixels = rng.integers(0, rng.integers(2, 200), (recipe.ipc, 1, 24, 24)).astype(np.uint8)
                made.parts[recipe, class_id] = Part(fitted.apply(pixels).numpy())
    return Memories(made._case, made), made


@pytest.mark.parametrize("budget", ["4kB/class", "40kB"])
def test_compressed_memories_fill_the_bytes_of_the_budget_with_what_fits(budget: str, tmp_path: Path) -> None:
    names = ("random", "distilled", "reservoir")
    memories, made = compressed(tmp_path, budget=budget, memories=names, distil_network="convnet-w8-d2")
    for step in range(5):
        random, distilled, reservoir = (memories._made((name, 0, 0), step) for name in names)
        share = 4000 if budget.endswith("class") else 20_000 // (step + 1)
        for class_id in random.classes:
            room = share - random[class_id].num_bytes
            arrived = next(s for s in range(5) if class_id in made._case.plan.streams[0].steps[s])
            larger = memories._exemplars(("random", 0, 0), arrived, class_id)
            kept = random[class_id].num_images
            assert room >= 0
            assert kept == larger.num_images or room < larger.sizes[kept]
            assert kept > share // 576, "no more than without compression"
            assert 0 < distilled[class_id].num_bytes <= share
        assert reservoir.num_bytes <= 40_000
    assert reservoir.num_bytes > 39_000


def test_compression_and_its_room_decide_what_a_result_is_known_by(tmp_path: Path) -> None:
    asked = {"memories": ("random", "distilled", "reservoir"), "distil_network": "convnet-w8-d2"}
    for memory in asked["memories"]:
        recipes = [
            Memories(one._case, one).identity((memory, 0, 0), 1)
            for one in (
                distiller(tmp_path, **asked),
                distiller(tmp_path, compress=True, **asked),
                distiller(tmp_path, compress=True, budget="4kB", **asked),
                distiller(tmp_path, compress=True, budget="4.1kB", **asked),
            )
        ]
        assert "files" not in recipes[0]
        assert all(one != other for one, other in itertools.combinations(recipes, 2))


@pytest.mark.ray
def test_memory_whose_images_cannot_be_kept_fails_alone(ray_cluster: None, tmp_path: Path) -> None:
    """Images that grew without bound are finite, their embeddings are not."""
    made = distiller(tmp_path, memories=("random", "distilled"), budget="2/class", orders=1)
    for class_id in range(10):
        images = np.full((2, 1, 8, 8), 1e38, dtype=np.float32) * [[[[1]]], [[[-1]]]]
        made.parts[made.recipe("distilled", 0, 0, class_id), class_id] = Part(images.astype(np.float32))
    memories = Memories(made._case, made)
    memories.advance(0)
    assert [key[0] for key in memories.after] == ["random"]
    assert "cannot be kept" in memories.failed["distilled", 0]
    memories.advance(1)
    assert [key[0] for key in memories.after] == ["random"]
