"""Distilled buffers inside Avalanche, on a few digits: four classes in two experiences."""

import io
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

pytest.importorskip("avalanche", reason="avalanche-lib is not installed: pip install '.[avalanche]'")

from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset, concat_datasets
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, MIRPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import ER_ACE, Naive

from apps.avalanche import (
    DistilledBuffer,
    DistilledGDumbPlugin,
    DsaTransform,
    RealStatisticsPlugin,
    distilled_memory_metrics,
)
from apps.avalanche.saved_buffer import load_buffer, save_buffer
from apps.continual.budget import apportion, priorities
from apps.continual.selection import order_distilled
from atom import DistilledSet, Preprocess, load, resolve_settings
from atom.errors import ArtifactError, ConfigError
from atom.methods.matching_loop import Atom
from atom.methods.settings import DistillSettings

ROOT = Path(__file__).parents[2]
CLASSES, NAMES = 4, ("zero", "one", "two", "three")
TINY = DistillSettings(
    iterations=3,
    network="convnet-w8-d2",
    batch_real=8,
    classes_per_group=1,
    compile="off",
    precision="float32",
)


def digits():
    """Forty images [N, 1, 8, 8] of each of four digits, uint8, and their labels."""
    train = load("digits", data_dir=Path("unused")).train
    rows = np.concatenate([train.indices_of(class_id)[:40] for class_id in range(CLASSES)])
    return train.images[rows], torch.from_numpy(train.labels[rows])


# Without loggers Avalanche warns that nothing will be logged.
pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

PIXELS, LABELS = digits()
PREPROCESS = Preprocess.fit(PIXELS, zca=False)
WHITE = PREPROCESS.apply(PIXELS)


def dataset(images=WHITE, labels=LABELS):
    made = TensorDataset(images, labels)
    made.targets = labels.tolist()
    return made


def benchmark(*, task_labels=False, data=None, **options):
    data = data or dataset()
    order = {"fixed_class_order": [2, 0, 3, 1]} if "fixed_class_order" not in options else {}
    return nc_benchmark(data, data, n_experiences=2, task_labels=task_labels, **order, **options)


def new_benchmark(data):
    return class_incremental_benchmark(
        {"train": data, "test": data}, num_experiences=2, class_order=[2, 0, 3, 1]
    )


BENCHMARKS = [benchmark, lambda: new_benchmark(dataset())]


def buffer_of(max_size=8, **options):
    return DistilledBuffer(max_size, **{"num_classes": CLASSES, "settings": TINY, "symbols": True, **options})


def strategy_with(*plugins, evaluator=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_mb_size=8,
        eval_mb_size=64,
        plugins=list(plugins),
        evaluator=evaluator or EvaluationPlugin(accuracy_metrics(stream=True)),
    )


def filled(buffer, bench=None):
    for exp in (bench or benchmark()).train_stream:
        buffer.post_adapt(None, exp)
    return buffer


def images_of(buffer):
    return torch.stack([buffer.buffer[row][0] for row in range(len(buffer.buffer))])


def batch_norm_strategy(*plugins):
    strategy = strategy_with(*plugins)
    strategy.model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.1)
    return strategy


@pytest.mark.filterwarnings("error:The model has BatchNorm")
def test_statistics_are_those_of_the_real_images_of_the_experience():
    bench, buffer = benchmark(), buffer_of()
    replay = ReplayPlugin(mem_size=8, storage_policy=buffer)
    strategy = batch_norm_strategy(replay, RealStatisticsPlugin(CLASSES))
    for exp in bench.train_stream:
        strategy.train(exp)
        real = WHITE[torch.isin(LABELS, torch.tensor(exp.classes_in_this_experience))]
        torch.testing.assert_close(strategy.model[0].running_mean, real.mean((0, 2, 3)))
        torch.testing.assert_close(strategy.model[0].running_var, real.var((0, 2, 3)), rtol=0.01, atol=0)


def test_a_model_whose_statistics_would_be_wrong_is_warned_of_with_the_remedy():
    strategy = batch_norm_strategy(ReplayPlugin(mem_size=8, storage_policy=buffer_of()))
    with pytest.warns(UserWarning, match=r"add RealStatisticsPlugin\(num_classes\) of apps.avalanche"):
        strategy.train(benchmark().train_stream[0])


@pytest.mark.filterwarnings("error:The model has BatchNorm")
def test_gdumb_is_judged_as_trained():
    batch_norm_strategy(DistilledGDumbPlugin(buffer_of(adaptive_size=False))).train(
        benchmark().train_stream[0]
    )


def test_the_statistics_of_a_model_of_several_tasks_are_those_of_its_task():
    class ByTask(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.norm, self.asked = nn.BatchNorm2d(1), set()

        def forward(self, images, task_labels):
            self.asked |= set(task_labels.tolist())
            return self.norm(images).flatten(1)[:, :CLASSES]

    strategy = strategy_with(RealStatisticsPlugin(CLASSES))
    strategy.model = ByTask()
    for task, exp in enumerate(benchmark(task_labels=True).train_stream):
        strategy.experience = exp
        strategy.model.asked.clear()
        strategy.plugins[0].after_training_exp(strategy)
        assert strategy.model.asked == {task}


def test_a_model_without_batch_norm_needs_no_statistics(recwarn):
    strategy = strategy_with(
        ReplayPlugin(mem_size=8, storage_policy=buffer_of()), RealStatisticsPlugin(CLASSES)
    )
    strategy.train(benchmark().train_stream[0])
    assert not [warning for warning in recwarn if "BatchNorm" in str(warning.message)]


@pytest.mark.parametrize("task_labels", [False, True])
def test_replay_mixes_the_buffer_into_the_batches(task_labels):
    bench, buffer = benchmark(task_labels=task_labels), buffer_of()
    strategy = strategy_with(ReplayPlugin(mem_size=8, storage_policy=buffer))
    for exp in bench.train_stream:
        strategy.train(exp)
        assert len(buffer.buffer[0]) == len(exp.dataset[0]) == 3
    assert buffer.memory.classes == (0, 1, 2, 3)
    assert list(buffer.buffer.targets) == [0, 0, 1, 1, 2, 2, 3, 3]
    tasks = [0, 0, 1, 1, 0, 0, 1, 1] if task_labels else [0] * 8
    assert list(buffer.buffer.targets_task_labels) == [item[2] for item in buffer.buffer] == tasks
    # With task labels and a single head the name of the accuracy has no task.
    accuracies = strategy.eval(bench.test_stream)
    assert [0 <= accuracy <= 1 for accuracy in accuracies.values()] == [True]


def test_the_buffer_is_balanced_by_task():
    """This loader asks the buffer for its tasks."""
    bench, buffer = benchmark(task_labels=True), buffer_of()
    plugin = ReplayPlugin(mem_size=8, batch_size_mem=4, task_balanced_dataloader=True, storage_policy=buffer)
    strategy_with(plugin).train(bench.train_stream)
    assert buffer.num_experiences == 2


@pytest.mark.parametrize("make", [lambda data: data, as_classification_dataset], ids=["torch", "avalanche"])
def test_replay_works_with_the_newer_kind_of_benchmark(make):
    """Whose items have two fields or three, and whose labels are numbers or tensors."""
    bench, buffer = new_benchmark(make(dataset())), buffer_of()
    strategy = strategy_with(ReplayPlugin(mem_size=8, storage_policy=buffer))
    for exp in bench.train_stream:
        strategy.train(exp)
        item, real = buffer.buffer[0], exp.dataset[0]
        assert [type(field) for field in item] == [type(field) for field in real]
    assert list(buffer.buffer.targets) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("make", BENCHMARKS, ids=["nc", "class_incremental"])
@pytest.mark.parametrize("plugin", [lambda: EWCPlugin(ewc_lambda=0.1), LwFPlugin], ids=["ewc", "lwf"])
def test_replay_works_beside_other_plugins(plugin, make):
    buffer = buffer_of()
    strategy = strategy_with(ReplayPlugin(mem_size=8, storage_policy=buffer), plugin())
    strategy.train(make().train_stream)
    assert len(buffer.buffer) == 8


@pytest.mark.parametrize("make", BENCHMARKS, ids=["nc", "class_incremental"])
def test_er_ace_takes_the_buffer(make):
    buffer = buffer_of()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    strategy = ER_ACE(model=model, optimizer=optimizer, mem_size=8, train_mb_size=8, evaluator=evaluator)
    strategy.storage_policy = buffer
    strategy.train(make().train_stream)
    assert len(buffer.buffer) == 8


def test_a_buffer_does_not_mirror_images_of_which_nobody_said_what_they_show():
    with pytest.raises(ConfigError, match=r"dsa_strategy 'auto' mirrors .* pass symbols=True"):
        buffer_of(symbols=None)
    assert buffer_of(symbols=None, settings=TINY.model_copy(update={"dsa_strategy": "crop"})).max_size == 8


def test_images_are_those_of_the_core_in_the_order_of_importance():
    buffer = filled(buffer_of(12, storage="float32", adaptive_size=False))
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": CLASSES}
    settings = resolve_settings(TINY.model_copy(update={"ipc": 3}), device_kind="cpu", symbols=True, **shape)
    distiller = Atom(settings, **shape, device=torch.device("cpu"))
    real = {2: WHITE[LABELS == 2]}
    state = distiller.advance(distiller.start([2], real), 3, unit=[2], real=real)
    white = torch.from_numpy(state.images[0])
    order = order_distilled(white, seed=0, network=TINY.network)
    assert np.array_equal(buffer.memory[2].images_NCHW, white.numpy()[order])


@pytest.mark.parametrize("storage", ["uint8", "uint8-scaled", "float32"])
def test_images_are_not_normalised_again(storage):
    """The benchmark's own transforms brighten every image; the buffer's items are those of its memory."""
    brighter = {"train_transform": lambda image: image + 7, "eval_transform": lambda image: image * 1}
    bench = benchmark(**brighter)
    buffer = buffer_of(storage=storage, preprocess=PREPROCESS)
    strategy = strategy_with(ReplayPlugin(mem_size=8, storage_policy=buffer))
    strategy.train(bench.train_stream)
    expected, labels = buffer.memory.contents(PREPROCESS)
    for group in (buffer.buffer.train(), buffer.buffer.eval()):
        assert torch.equal(torch.stack([item[0] for item in group]), expected)
        assert [item[1] for item in group] == labels.tolist()
    joined = bench.train_stream[0].dataset.concat(buffer.buffer)
    assert torch.equal(joined[len(joined) - 1][0], expected[-1])
    assert bench.train_stream[0].dataset[0][0].mean() > 3


def test_real_images_come_through_the_eval_transforms():
    bench = benchmark(train_transform=lambda image: image / 0, eval_transform=lambda image: image * 1)
    assert torch.equal(images_of(filled(buffer_of(), bench)), images_of(filled(buffer_of())))


def test_bytes_are_those_of_the_stored_form():
    buffer = filled(buffer_of())
    assert buffer.memory.num_images == len(buffer.buffer) == 8
    assert buffer.memory.num_bytes == 8 * (64 + 8)


def test_a_shared_size_shrinks_every_class_to_its_most_important_images():
    bench, buffer = benchmark(), buffer_of(9, storage="float32")
    first, second = bench.train_stream
    buffer.post_adapt(None, first)
    before = buffer.memory[2].images_NCHW
    assert len(before) == 4
    buffer.post_adapt(None, second)
    assert [buffer.memory[class_id].num_images for class_id in range(CLASSES)] == [2, 2, 2, 2]
    assert np.array_equal(buffer.memory[2].images_NCHW, before[:2])


def test_a_size_by_class_lets_nothing_shrink():
    bench, buffer = benchmark(), buffer_of(12, adaptive_size=False)
    for number, exp in enumerate(bench.train_stream, 1):
        buffer.post_adapt(None, exp)
        assert len(buffer.buffer) == 3 * 2 * number


def test_resize_keeps_the_most_important_images_of_each_class():
    buffer = filled(buffer_of(16, storage="float32"))
    before = {class_id: buffer.memory[class_id].images_NCHW for class_id in range(CLASSES)}
    buffer.resize(None, 11)
    assert (buffer.max_size, len(buffer.buffer)) == (11, 8)
    for class_id, images_NCHW in before.items():
        assert np.array_equal(buffer.memory[class_id].images_NCHW, images_NCHW[:2])
    buffer.resize(None, 100)
    assert (buffer.max_size, len(buffer.buffer)) == (100, 8)


@pytest.mark.parametrize("init", ["real", "noise"])
def test_a_class_is_distilled_into_no_more_images_than_it_has(init):
    rows = torch.cat([(c == LABELS).nonzero().flatten()[: 5 + c] for c in range(CLASSES)])
    settings = TINY.model_copy(update={"init": init})
    buffer = filled(buffer_of(80, settings=settings), benchmark(data=dataset(WHITE[rows], LABELS[rows])))
    # Experiences {2, 0} and {3, 1}: a rare class takes nothing from the other one.
    assert [buffer.memory[class_id].num_images for class_id in range(CLASSES)] == [5, 6, 7, 8]


def test_equal_runs_give_equal_buffers_and_draw_no_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one = filled(buffer_of()).memory.to_bytes()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    torch.manual_seed(4)
    assert filled(buffer_of()).memory.to_bytes() == one
    other = TINY.model_copy(update={"seed": 1})
    assert filled(buffer_of(settings=other)).memory.to_bytes() != one


def experience_files(directory):
    return sorted(directory.glob("experience-*"))


def test_a_second_run_reads_its_files_and_distils_nothing(tmp_path):
    first = filled(buffer_of(directory=tmp_path))
    assert first.seconds > 0
    assert [path.name[:15] for path in experience_files(tmp_path)] == ["experience-000-", "experience-001-"]
    second = filled(buffer_of(directory=str(tmp_path), restore=False))
    assert second.seconds == 0
    assert second.memory.to_bytes() == first.memory.to_bytes()
    assert torch.equal(images_of(second), images_of(first))


def test_a_run_goes_on_after_the_experience_that_was_done(tmp_path):
    whole = filled(buffer_of())
    first, second = benchmark().train_stream
    buffer_of(directory=tmp_path).post_adapt(None, first)
    resumed = buffer_of(directory=tmp_path, restore=False)
    resumed.post_adapt(None, first)
    assert resumed.seconds == 0
    resumed.post_adapt(None, second)
    assert resumed.seconds > 0
    assert resumed.memory.to_bytes() == whole.memory.to_bytes()


@pytest.mark.parametrize("task_labels", [False, True])
def test_a_buffer_in_a_new_process_goes_on_without_the_images_it_replaces(tmp_path, task_labels):
    bench = benchmark(task_labels=task_labels)
    whole = filled(buffer_of(), bench)
    first, second = bench.train_stream
    buffer_of(directory=tmp_path, restore=True).post_adapt(None, first)
    month_2 = buffer_of(directory=tmp_path, restore=True)
    assert (month_2.num_experiences, month_2.memory.classes) == (1, (0, 2))
    month_2.post_adapt(None, second)
    assert month_2.memory.to_bytes() == whole.memory.to_bytes()
    assert [item[1:] for item in month_2.buffer] == [item[1:] for item in whole.buffer]
    assert torch.equal(images_of(month_2), images_of(whole))


def test_a_directory_with_experiences_is_not_opened_as_an_empty_buffer(tmp_path):
    filled(buffer_of(directory=tmp_path))
    with pytest.raises(ConfigError, match=r"holds experiences.*restore=True.*restore=False"):
        buffer_of(directory=tmp_path)
    buffer_of(directory=tmp_path / "new")


def test_a_restored_buffer_keeps_what_a_smaller_size_allows(tmp_path):
    filled(buffer_of(12, directory=tmp_path))
    smaller = buffer_of(4, directory=tmp_path, restore=True)
    assert (len(smaller.buffer), smaller.memory.num_images) == (4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "holds class 3, expected those below num_classes 3"),
        ({"preprocess": Preprocess(torch.zeros(1), torch.full((1,), 9.0))}, "another preprocessing"),
    ],
    ids=["classes", "preprocess"],
)
def test_a_buffer_of_another_benchmark_is_not_restored(tmp_path, options, message):
    filled(buffer_of(directory=tmp_path, preprocess=PREPROCESS))
    with pytest.raises(ConfigError, match=message):
        buffer_of(directory=tmp_path, restore=True, **options)


def test_a_damaged_or_missing_state_is_refused_by_name(tmp_path):
    filled(buffer_of(directory=tmp_path))
    state = tmp_path / "buffer.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"buffer\.safetensors: .*damaged|buffer\.safetensors: .*failed"):
        buffer_of(directory=tmp_path, restore=True)
    state.unlink()
    with pytest.raises(ConfigError, match=r"no buffer\.safetensors.*restore=False"):
        buffer_of(directory=tmp_path, restore=True)


def test_a_buffer_goes_through_torch_save(tmp_path):
    buffer = filled(buffer_of())
    torch.save(buffer, tmp_path / "buffer.pt")
    loaded = torch.load(tmp_path / "buffer.pt", weights_only=False)
    assert torch.equal(images_of(loaded), images_of(buffer))
    assert len(torch.load(io.BytesIO(saved(buffer_of())), weights_only=False).buffer) == 0


def saved(buffer):
    stream = io.BytesIO()
    torch.save(buffer, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": TINY.model_copy(update={"iterations": 4})},
        {"storage": "float32"},
        {"max_size": 12},
        {"num_classes": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_files_of_other_settings_are_left_alone(tmp_path, changes):
    exp = benchmark().train_stream[0]
    buffer_of(directory=tmp_path).post_adapt(None, exp)
    (old,) = experience_files(tmp_path)
    content = old.read_bytes()
    other = buffer_of(directory=tmp_path, restore=False, **changes)
    other.post_adapt(None, exp)
    assert other.seconds > 0
    assert len(experience_files(tmp_path)) == 2
    assert old.read_bytes() == content


def test_files_are_found_again_where_the_file_of_the_network_has_moved(tmp_path):
    exp = benchmark().train_stream[0]
    for folder in ("here", "there"):
        source = tmp_path / folder / "net.py"
        source.parent.mkdir()
        source.write_text(
            "from atom import nets\n\n\ndef build(channels, image_size, num_classes):\n"
            "    shape = {'channels': channels, 'image_size': image_size, 'num_classes': num_classes}\n"
            "    return nets.build('convnet-w8-d2', **shape)\n"
        )
        settings = TINY.model_copy(update={"network": f"{source}:build"})
        buffer = buffer_of(directory=tmp_path / "files", restore=False, settings=settings)
        buffer.post_adapt(None, exp)
    assert buffer.seconds == 0
    assert len(experience_files(tmp_path / "files")) == 1


def test_files_of_other_images_are_left_alone(tmp_path):
    filled(buffer_of(directory=tmp_path))
    other = filled(buffer_of(directory=tmp_path, restore=False), benchmark(data=dataset(WHITE + 0.5)))
    assert other.seconds > 0
    assert len(experience_files(tmp_path)) == 4


def test_a_damaged_file_is_refused_by_name(tmp_path):
    exp = benchmark().train_stream[0]
    buffer_of(directory=tmp_path).post_adapt(None, exp)
    (path,) = experience_files(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=f"{path.name}: .* remove"):
        buffer_of(directory=tmp_path, restore=False).post_adapt(None, exp)


def test_gdumb_trains_a_fresh_model_on_the_buffer_alone():
    bench, buffer = benchmark(), buffer_of(8, adaptive_size=False)

    class Seen(DistilledGDumbPlugin):
        images, starts, momenta = 0, (), 0

        def before_training_epoch(self, strategy, **kwargs):
            self.images = 0
            self.starts += (strategy.model[1].weight.detach().clone(),)
            self.momenta += len([state for state in strategy.optimizer.state.values() if state])

        def before_training_iteration(self, strategy, **kwargs):
            self.images += len(strategy.mb_x)
            stored, _ = buffer.memory.contents(PREPROCESS)
            assert all((stored == image).all(dim=(1, 2, 3)).any() for image in strategy.mb_x)

    plugin = Seen(buffer)
    strategy = strategy_with(plugin)
    for number, exp in enumerate(bench.train_stream, 1):
        strategy.train(exp)
        assert plugin.images == len(buffer.buffer) == 4 * number
    assert torch.equal(*plugin.starts)
    assert plugin.momenta == 0
    assert not torch.equal(strategy.model[1].weight, plugin.starts[0])


def test_metrics_stand_beside_the_accuracy_of_the_stream():
    bench, buffer = benchmark(), buffer_of()
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), distilled_memory_metrics(buffer))
    strategy = strategy_with(ReplayPlugin(mem_size=8, storage_policy=buffer), evaluator=evaluator)
    for exp in bench.train_stream:
        strategy.train(exp)
        results = strategy.eval(bench.test_stream)
    ours = {name: value for name, value in results.items() if name.startswith("Distilled")}
    assert ours == {
        "DistilledMemory_Images/eval_phase/test_stream": 8,
        "DistilledMemory_Bytes/eval_phase/test_stream": 8 * 72,
        "DistilledMemory_Seconds/eval_phase/test_stream": buffer.seconds,
    }
    curve = evaluator.get_all_metrics()["DistilledMemory_Bytes/eval_phase/test_stream"]
    assert curve == ([10, 20], [8 * 72, 8 * 72])


def test_augmentation_changes_items_in_training_alone():
    buffer = filled(buffer_of(train_dsa_strategy="color", preprocess=PREPROCESS))
    stored, _ = buffer.memory.contents(PREPROCESS)
    torch.manual_seed(0)
    first, again = images_of(buffer), images_of(buffer)
    torch.manual_seed(0)
    assert torch.equal(images_of(buffer), first)
    assert not torch.equal(first, again)
    assert first.shape == stored.shape
    assert torch.equal(torch.stack([item[0] for item in buffer.buffer.eval()]), stored)


def given_set(preprocess=PREPROCESS):
    images = preprocess.apply(PIXELS)
    rows = torch.cat([(class_id == LABELS).nonzero().flatten()[:3] for class_id in range(CLASSES)])
    return DistilledSet(
        images_NCHW=images[rows],
        labels=LABELS[rows],
        class_names=NAMES,
        ipc=3,
        method="dm",
        preprocess=preprocess,
    )


def test_a_set_made_beforehand_fills_the_buffer(tmp_path):
    path = given_set().save(tmp_path / "set")
    buffer = DistilledBuffer.from_set(path, 20, storage="float32", network="convnet-w8-d2")
    strategy = strategy_with(ReplayPlugin(mem_size=20, storage_policy=buffer))
    strategy.train(benchmark().train_stream)
    assert buffer.seconds == 0
    # The set has three images of a class, fewer than the five it may keep.
    assert list(buffer.buffer.targets) == sorted(list(range(CLASSES)) * 3)
    found, wanted = (
        images.flatten(1).sort(dim=0).values for images in (images_of(buffer), given_set().images_NCHW)
    )
    assert torch.equal(found, wanted)
    buffer.resize(None, 8)
    assert len(buffer.buffer) == 8


def test_images_in_all_are_refused():
    whole = given_set()
    few = replace(whole, images_NCHW=whole.images_NCHW[:11], labels=whole.labels[:11])
    few = replace(few, soft_labels=torch.full((11, CLASSES), 1 / CLASSES))
    with pytest.raises(ConfigError, match="the distilled set: the set has 11 images in all for 4 classes"):
        DistilledBuffer.from_set(few, 12, storage="float32")
    settings = DistillSettings(method="datm", images_in_all=3)
    with pytest.raises(
        ConfigError, match="images_in_all 3: the size of the buffer says how many images a class"
    ):
        DistilledBuffer(12, num_classes=CLASSES, settings=settings, symbols=True)


def test_a_set_of_another_preprocessing_is_brought_to_that_of_the_benchmark():
    plain = Preprocess(torch.zeros(1), torch.ones(1))
    buffer = DistilledBuffer.from_set(given_set(plain), 12, storage="float32", preprocess=PREPROCESS)
    filled(buffer)
    found, wanted = (
        images.flatten(1).sort(dim=0).values for images in (images_of(buffer), given_set().images_NCHW)
    )
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 3}, "4 classes need 4 images or more"),
        ({"max_size": 9, "adaptive_size": False}, "9 does not divide by 4 classes"),
        ({"num_classes": 0}, "num_classes 0: expected"),
        ({"storage": "float16"}, "'float16' is unknown; known are uint8, uint8-scaled, float32"),
        ({"storage": "uint8"}, r"pass preprocess=Preprocess\(mean, std\)"),
        ({"device": "tpu"}, "device 'tpu': unknown"),
        ({"train_dsa_strategy": "blur"}, "unknown operation 'blur'; known are color"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        buffer_of(**options)


def first_experience(images=WHITE, labels=LABELS, **options):
    return benchmark(data=dataset(images, labels), **options).train_stream[0]


@pytest.mark.parametrize(
    ("exp", "options", "message"),
    [
        (
            lambda: first_experience(torch.from_numpy(PIXELS)),
            {},
            "a tensor of torch.uint8, expected a float tensor",
        ),
        (
            lambda: first_experience(eval_transform=lambda image: image.tolist()),
            {},
            "an image is list, expected",
        ),
        (lambda: first_experience(WHITE / 0), {}, "class 0: an image holds NaN or infinity"),
        (
            lambda: first_experience(WHITE.flatten(1)),
            {},
            r"have the shapes \[64\]; expected one shape \[C, H, W\]",
        ),
        (first_experience, {"num_classes": 2}, "labels from 0 to 2, expected 0 to 1; pass as num_classes"),
        (
            first_experience,
            {"preprocess": Preprocess(torch.zeros(1), torch.ones(1))},
            "lie between -0.81 and",
        ),
        (
            first_experience,
            {"preprocess": Preprocess(torch.zeros(3), torch.ones(3))},
            r"was fitted on \[N, 3, H",
        ),
        (
            first_experience,
            {"settings": TINY.model_copy(update={"factor": 7})},
            "a distilled one with factor 7",
        ),
    ],
)
def test_experiences_that_do_not_fit_are_refused(exp, options, message):
    with pytest.raises(ConfigError, match=message):
        buffer_of(**options).post_adapt(None, exp())


def parts_of(class_ids, *shares):
    """An experience for each share of the images of some classes: rows by class, in their order."""
    made = []
    for low, high in shares:
        rows = torch.cat([(c == LABELS).nonzero().flatten()[low:high] for c in class_ids])
        made.append(SimpleNamespace(dataset=as_classification_dataset(dataset(WHITE[rows], LABELS[rows]))))
    return made


def test_a_class_that_comes_again_shares_its_room_by_real_images():
    buffer = buffer_of(16, storage="float32")
    first, second, third = parts_of([1, 2], (0, 30), (30, 40), (10, 40))
    buffer.post_adapt(None, first)
    before = buffer.memory[1].images_NCHW
    assert buffer.quota(2) == 8 == len(before)
    buffer.post_adapt(None, second)
    alone = buffer_of(4, storage="float32")
    alone.post_adapt(None, second)
    kept = buffer.memory[1].images_NCHW
    old = [row for row in kept if any(np.array_equal(row, image) for image in before)]
    # Of 8 images for 30 and 10 real ones.
    assert (len(old), len(kept)) == (6, 8)
    assert np.array_equal(np.stack(old), before[:6])
    new = np.stack([row for row in kept if not any(np.array_equal(row, image) for image in before)])
    assert np.array_equal(new, alone.memory[1].images_NCHW)
    assert list(buffer.buffer.targets) == [1] * 8 + [2] * 8
    buffer.post_adapt(None, third)
    assert buffer.memory.num_images == 16
    buffer.resize(None, 4)
    assert [buffer.memory[c].num_images for c in (1, 2)] == [2, 2]


def test_merging_is_the_rule_of_apportioned_lots():
    buffer = buffer_of(14, storage="float32")
    shares = [(0, 23), (23, 34), (34, 40)]
    for exp in parts_of([0, 3], *shares):
        buffer.post_adapt(None, exp)
    sizes = [high - low for low, high in shares]
    counts = buffer._counts[0]
    of_lots = [int(np.isin(counts, priorities(size, 7)).sum()) for size in sizes]
    assert of_lots == apportion(7, sizes, sizes)
    assert (np.diff(counts) <= 0).all()


def test_a_few_images_of_a_class_that_comes_again_may_have_no_room():
    buffer = buffer_of(4)
    many, one = parts_of([1, 2], (0, 39), (39, 40))
    buffer.post_adapt(None, many)
    before = buffer.memory.to_bytes()
    buffer.post_adapt(None, one)
    assert buffer.memory.to_bytes() == before
    assert buffer.num_experiences == 2


def test_a_class_of_a_set_keeps_what_it_has_when_it_comes_again():
    given = DistilledSet(
        images_NCHW=torch.from_numpy(np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32)),
        labels=torch.arange(4).repeat_interleave(2),
        class_names=NAMES,
        ipc=2,
        method="noise",
        preprocess=PREPROCESS,
    )
    buffer = DistilledBuffer.from_set(given, 8, network=TINY.network)
    first, second = parts_of([1, 2], (0, 20), (20, 40))
    buffer.post_adapt(None, first)
    before = buffer.memory.to_bytes()
    buffer.post_adapt(None, second)
    assert buffer.memory.to_bytes() == before


@pytest.mark.parametrize("storage", ["uint8", "uint8-scaled"])
def test_open_needs_the_directory_alone_and_goes_on_with_a_class_that_comes_back(storage, tmp_path):
    shares = parts_of([1, 2], (0, 25), (25, 40))
    options = {"storage": storage, "preprocess": PREPROCESS, "train_dsa_strategy": "crop"}
    whole = buffer_of(12, **options)
    kept = buffer_of(12, directory=tmp_path, **options)
    for exp in shares[:1]:
        whole.post_adapt(None, exp)
        kept.post_adapt(None, exp)
    opened = DistilledBuffer.open(tmp_path)
    for name in ("max_size", "adaptive_size", "num_classes", "num_experiences", "seen_classes"):
        assert getattr(opened, name) == getattr(whole, name), name
    assert opened.memory.to_bytes() == whole.memory.to_bytes()
    for exp in shares[1:]:
        whole.post_adapt(None, exp)
        opened.post_adapt(None, exp)
    assert opened.memory.to_bytes() == whole.memory.to_bytes()


ONE_MONTH = """
import sys
import numpy as np, torch
from types import SimpleNamespace
from avalanche.benchmarks.utils import as_classification_dataset, concat_datasets
from torch.utils.data import TensorDataset
from apps.avalanche import DistilledBuffer
from atom.methods.settings import DistillSettings

directory, images, first = sys.argv[1:]
if first == "first":
    settings = DistillSettings(iterations=3, network="convnet-w8-d2", batch_real=8, compile="off", precision="float32",
                               classes_per_group=1)
    buffer = DistilledBuffer(12, num_classes=4, settings=settings, symbols=True, directory=directory, restore=False)
else:
    buffer = DistilledBuffer.open(directory)
held = np.load(images)
data = TensorDataset(torch.from_numpy(held["images"]), torch.from_numpy(held["labels"]))
data.targets = held["labels"].tolist()
buffer.post_adapt(None, SimpleNamespace(dataset=as_classification_dataset(data)))
print(buffer.memory.classes, buffer.memory.num_images, buffer.num_experiences)
"""


@pytest.mark.timeout(300)
def test_two_processes_with_a_class_that_comes_back_give_the_buffer_of_one(tmp_path):
    """Month 1 has classes 0 and 1, its images are deleted; month 2 has class 2, and class 1 in other images."""
    months = [{0: (0, 40), 1: (0, 25)}, {2: (0, 40), 1: (25, 40)}]
    whole = buffer_of(12)
    for number, month in enumerate(months):
        rows = torch.cat([(c == LABELS).nonzero().flatten()[low:high] for c, (low, high) in month.items()])
        images = tmp_path / "images.npz"
        np.savez(images, images=WHITE[rows].numpy(), labels=LABELS[rows].numpy())
        finished = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                ONE_MONTH,
                tmp_path / "kept",
                images,
                ("first", "next")[number],
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert finished.returncode == 0, finished.stderr
        images.unlink()
        exp = SimpleNamespace(dataset=as_classification_dataset(dataset(WHITE[rows], LABELS[rows])))
        whole.post_adapt(None, exp)
    assert finished.stdout == "(0, 1, 2) 12 2\n"
    opened = DistilledBuffer.open(tmp_path / "kept")
    assert opened.memory.to_bytes() == whole.memory.to_bytes()
    assert torch.equal(images_of(opened), images_of(whole))


def test_open_refuses_a_directory_without_a_buffer_or_of_an_older_version(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no buffer\.safetensors; pass the directory of a buffer"):
        DistilledBuffer.open(tmp_path)
    filled(buffer_of(directory=tmp_path, preprocess=PREPROCESS))
    (tmp_path / "preprocess.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"preprocess\.safetensors"):
        DistilledBuffer.open(tmp_path)
    saved = load_buffer(tmp_path, num_classes=CLASSES)
    save_buffer(replace(saved, options=None), tmp_path, None)
    with pytest.raises(ConfigError, match="an older version wrote it"):
        DistilledBuffer.open(tmp_path)


OWN_NETWORK = """
from atom import nets
def build(channels, image_size, num_classes):
    return nets.build("convnet-{size}", channels=channels, image_size=image_size, num_classes=num_classes)
"""


def with_options(directory, **changes):
    """The file of a directory's buffer with other options, as anyone may have written them."""
    saved = load_buffer(directory, num_classes=CLASSES)
    save_buffer(replace(saved, options={**saved.options, **changes}), directory, None)


@pytest.mark.parametrize("kind", ["network", "method"])
def test_open_runs_no_code_that_only_the_directory_names(tmp_path, kind):
    filled(buffer_of(directory=tmp_path))
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    settings = {**TINY.model_dump(mode="json"), kind: f"{tmp_path / 'trap.py'}:build"}
    with_options(tmp_path, settings=settings)
    for given in (None, "convnet"):
        with pytest.raises(ConfigError, match=f"{kind} of its distillation is code of yours.*pass {kind}="):
            DistilledBuffer.open(tmp_path, **{kind: given})
    assert not (tmp_path / "sprung").exists()


def test_open_takes_the_code_of_then_and_no_other(tmp_path):
    names = {}
    for size in ("w8-d2", "w4-d2"):
        (tmp_path / size).mkdir()
        (tmp_path / size / "net.py").write_text(OWN_NETWORK.format(size=size))
        names[size] = f"{tmp_path / size / 'net.py'}:build"
    kept = buffer_of(
        directory=tmp_path / "kept", settings=TINY.model_copy(update={"network": names["w8-d2"]})
    )
    kept.post_adapt(None, benchmark().train_stream[0])
    with pytest.raises(
        ConfigError, match=r"network .*w4-d2/net\.py:build' is net\.py:build@.*the code of then"
    ):
        DistilledBuffer.open(tmp_path / "kept", network=names["w4-d2"])
    opened = DistilledBuffer.open(tmp_path / "kept", network=names["w8-d2"])
    assert opened.memory.to_bytes() == kept.memory.to_bytes()
    filled(buffer_of(directory=tmp_path / "plain"))
    with pytest.raises(
        ConfigError, match=r"network 'convnet': the buffer in .* has 'convnet-w8-d2'; leave it out"
    ):
        DistilledBuffer.open(tmp_path / "plain", network="convnet")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"colour": "blue"}, "colour: Extra inputs are not permitted, received 'blue'"),
        ({"storage": "float8"}, "storage: Input should be 'uint8'"),
        ({"settings": {"lr_img": "fast"}}, "lr_img: Input should be a valid number"),
        ({"settings": {"a_later_one": 1}}, "a_later_one: Extra inputs are not permitted"),
        ({"settings": {"method": "later"}}, "later: unknown method"),
        ({"settings": {"power": 3, "method": "dm"}}, "the method dm does not read it"),
    ],
)
def test_open_refuses_options_of_a_later_version_in_one_sentence(tmp_path, changes, what):
    filled(buffer_of(directory=tmp_path))
    with_options(tmp_path, **changes)
    with pytest.raises(
        ArtifactError, match=rf"buffer\.safetensors: written by another version.*\(.*{what}.*\); open"
    ):
        DistilledBuffer.open(tmp_path)


def test_a_class_that_comes_again_in_another_task_is_refused_before_anything_is_distilled():
    buffer = buffer_of()
    for exp in benchmark(task_labels=True).train_stream:
        buffer.post_adapt(None, exp)
    seconds = buffer.seconds
    other = benchmark(task_labels=True, fixed_class_order=[1, 3, 0, 2]).train_stream[0]
    with pytest.raises(ConfigError, match="class 1 comes again with task label 0, it had 1"):
        buffer.post_adapt(None, other)
    assert buffer.seconds == seconds


def test_groups_are_those_that_plugins_ask_a_class_balanced_buffer_for():
    buffer = filled(buffer_of(9))
    theirs = ClassBalancedBuffer(9)
    for exp in benchmark().train_stream:
        theirs.post_adapt(None, exp)
    assert buffer.seen_classes == theirs.seen_classes
    assert set(buffer.buffer_groups) == set(theirs.buffer_groups)
    assert buffer.total_num_classes == theirs.total_num_classes is None
    assert [list(one.targets) for one in buffer.buffer_datasets] == [[c, c] for c in range(CLASSES)]
    for class_id, group in buffer.buffer_groups.items():
        assert group.max_size == 2 == len(group.buffer)
        assert group.buffer[0][1] == class_id
    # MIR joins the groups of all classes but those at hand, and SCR and ER_AML load each.
    joined = concat_datasets([buffer.buffer_groups[key].buffer for key in (0, 2)])
    assert list(joined.targets) == [0, 0, 2, 2]


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("adaptive", [True, False])
def test_every_public_name_of_a_class_balanced_buffer_is_there(adaptive):
    ours = buffer_of(9 if adaptive else 8, adaptive_size=adaptive)
    theirs = ClassBalancedBuffer(ours.max_size, adaptive, None if adaptive else CLASSES)
    assert public(theirs) <= public(ours)
    assert ours.total_num_groups == theirs.total_num_groups
    assert ours.get_group_lengths(2) == ([4, 4] if adaptive else theirs.get_group_lengths(2))
    assert ours.get_group_lengths(0) == []


def test_a_dataset_is_taken_as_an_experience():
    experiences = benchmark().train_stream
    whole, buffer = filled(buffer_of()), buffer_of()
    for exp in experiences:
        buffer.update_from_dataset(exp.dataset)
    buffer.update_from_dataset(experiences[0].dataset.subset([]))
    assert buffer.memory.to_bytes() == whole.memory.to_bytes()
    assert buffer.num_experiences == 2
    # FeatureReplay hands over features.
    with pytest.raises(
        ConfigError, match=r"received TensorDataset, expected an AvalancheDataset of the images"
    ):
        buffer.update_from_dataset(TensorDataset(torch.zeros(4, 9), torch.zeros(4)))


def test_mir_takes_the_buffer():
    buffer, plugin = buffer_of(), MIRPlugin(batch_size_mem=2, mem_size=8, subsample=4)
    plugin.storage_policy = buffer
    strategy_with(plugin).train(benchmark().train_stream)
    assert len(buffer.buffer) == 8


def test_a_transform_without_operations_changes_nothing():
    assert torch.equal(DsaTransform("none")(WHITE[0]), WHITE[0])


def test_without_avalanche_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['avalanche'] = None\n"
        "try: import apps.avalanche\nexcept ImportError as error: print(error)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert finished.stdout == (
        "apps.avalanche needs avalanche-lib 0.6, which is not installed here; run pip install"
        " 'atom-distill[avalanche]'.\n"
    )
