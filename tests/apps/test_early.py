"""A training that waits at its reports: what it reports, how it ends, and that looking at it changes nothing."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.nas.early import PausingTraining, Report, report_epochs, rungs_passed
from apps.nas.proxies import Proxy
from apps.nas.space import load_space
from apps.nas.trial import Images, OnEpoch, Recipe, Score, Unit, run_unit, train_unit
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings

EPOCHS = 6


def counting(seen: list[int]) -> Callable[[OnEpoch], Score]:
    """A training whose score is the number of epochs done."""

    def train(on_epoch: OnEpoch) -> Score:
        for epoch in range(1, EPOCHS + 1):
            seen.append(epoch)
            on_epoch(epoch, lambda epoch=epoch: Score(float(epoch)))
        return Score(float(EPOCHS))

    return train


def test_training_runs_up_to_its_next_report_and_no_further() -> None:
    seen: list[int] = []
    training = PausingTraining(counting(seen), epochs=EPOCHS, report_at=(2, 3, 6))
    assert seen == []
    for epochs in (2, 3, 6):
        assert training.advance() == Report(epochs, Score(float(epochs)))
        assert seen[-1] == epochs
    with pytest.raises(RuntimeError, match="has ended"):
        training.advance()


def test_closed_training_ends_where_it_is() -> None:
    seen: list[int] = []
    before = threading.active_count()
    training = PausingTraining(counting(seen), epochs=EPOCHS, report_at=(2, 4))
    training.advance()
    training.close()
    training.close()
    assert seen == [1, 2]
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="has ended"):
        training.advance()


def test_training_that_never_began_can_be_closed() -> None:
    PausingTraining(counting([]), epochs=EPOCHS, report_at=()).close()


def test_error_of_a_training_reaches_whoever_advances_it() -> None:
    def train(on_epoch: OnEpoch) -> Score:
        on_epoch(1, lambda: Score(1.0))
        raise ValueError("no such layer")

    training = PausingTraining(train, epochs=EPOCHS, report_at=(1,))
    training.advance()
    with pytest.raises(ValueError, match="no such layer"):
        training.advance()


@settings(deadline=None)
@given(st.sets(st.integers(1, 300), min_size=1, max_size=6))
def test_reports_include_every_rung_and_the_end(found: set[int]) -> None:
    rungs = sorted(found)
    report_at = report_epochs(rungs)
    assert set(rungs) <= set(report_at)
    assert list(report_at) == sorted(set(report_at))
    assert report_at[-1] == rungs[-1]
    assert len(report_at) <= 40 + len(rungs)
    assert [rungs_passed(epochs, rungs) for epochs in rungs] == list(range(1, len(rungs) + 1))
    assert rungs_passed(rungs[0] - 1, rungs) == 0


SPACE = """
import torch
from torch import nn


class Drawing(nn.Module):
    \"\"\"Dropout in training, and a draw that changes nothing whenever it is asked.\"\"\"

    def __init__(self, channels, num_classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)
        )
        self.head = nn.LazyLinear(num_classes)

    def forward(self, images):
        torch.rand(3)
        return self.head(self.layers(images))


def drawing(channels, image_size, num_classes):
    net = Drawing(channels, num_classes)
    net(torch.zeros(2, channels, *image_size))
    return net


networks = [("drawing", drawing, 100)]
"""


def test_looking_at_a_training_changes_none_of_its_bits(tmp_path: Path) -> None:
    path = tmp_path / "drawing_space.py"
    path.write_text(SPACE)
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randn(12, 2, 5, 4, generator=generator)
    labels_N = torch.arange(12) % 3
    part = images_NCHW, labels_N
    asked = EvaluateSettings(epochs=EPOCHS, batch_train=5, eval_precision="float32")
    options: dict[str, Any] = {
        "space": load_space(f"{path}:networks", channels=2, image_size=(5, 4), num_classes=3),
        "small": {"tiny": {None: (images_NCHW.numpy(), labels_N.numpy())}},
        "real": {"main": Images(part, part, part)},
        "recipe": Recipe(
            resolve_evaluation(asked, device_kind="cpu", symbols=False), whole_epochs=1, steps=1
        ),
        "device": torch.device("cpu"),
    }
    unit, proxy = Unit("drawing", "tiny", 0), Proxy("tiny", "set", "main", 12)
    alone = run_unit(unit, proxy, **options)
    looks: list[tuple[int, Score]] = []
    net, watched = train_unit(
        unit, proxy, on_epoch=lambda epoch, score: looks.append((epoch, score())), **options
    )
    plain_net, _ = train_unit(unit, proxy, **options)
    assert watched.score == alone.score == looks[-1][1].score
    for name, tensor in plain_net.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name
    assert [epoch for epoch, _ in looks] == list(range(1, EPOCHS + 1))
    assert [score.steps for _, score in looks] == [3 * epoch for epoch in range(1, EPOCHS + 1)]
    times = [score.train_seconds for _, score in looks]
    assert times == sorted(times)
    assert watched.score_seconds > looks[-1][1].score_seconds
