"""Lots: which images of a class come together, under looks, in sessions, across blurred borders, in two halves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.continual.looks import LOOKS, under_look
from apps.continual.lots import Lots, blurred, by_session, returning, under_looks
from apps.continual.stream import blurred_stream, class_stream, domain_stream, returning_stream
from atom.data import ImageSet, RealData, load
from atom.errors import ConfigError


@pytest.fixture(scope="module")
def real() -> RealData:
    return load("digits", data_dir=Path("unused")).hold_out(0.1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("look", LOOKS)
def test_looks_change_pixels_alike_every_time_and_leave_their_input_alone(look, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 8, 6)).astype(np.uint8)
    before = images.copy()
    shown = under_look(images, look, counter=0)
    assert (shown.shape, shown.dtype) == (images.shape, np.uint8)
    assert np.array_equal(shown, under_look(images, look, counter=0))
    assert np.array_equal(images, before)
    assert np.array_equal(shown, images) == (look == "plain")
    if look in ("rotate", "noise"):
        assert not np.array_equal(shown, under_look(images, look, counter=1))


def test_every_look_is_a_part_of_all_images_of_every_split(real):
    lots = under_looks(real, ("plain", "invert", "blur"))
    assert real.validation is not None
    for name, own in (("train", real.train), ("test", real.test), ("validation", real.validation)):
        changed = getattr(lots.real, name)
        numbers = lots.train() if name == "train" else lots.judged(name)
        assert len(changed) == 3 * len(own)
        for part, look in enumerate(("plain", "invert")):
            rows = numbers // 10 == part
            assert np.array_equal(changed.images[rows], under_look(own.images, look, counter=0))
            assert np.array_equal(numbers[rows] % 10, own.labels)
    assert (lots.name(3), lots.name(13)) == ("3 (plain)", "3 (invert)")
    assert len(lots.counts()) == 30
    assert lots.real.symbols


def test_sessions_are_parts_and_classes_are_those_of_all_sessions():
    names = ("a/cup", "a/pen", "b/cup", "c/pen")
    labels = np.arange(8) % 4
    images = ImageSet.create(np.arange(8 * 4, dtype=np.uint8).reshape(8, 1, 2, 2), labels, names)
    source = load("digits", data_dir=Path("unused"))
    lots = by_session(replace(source, train=images, test=images))
    assert lots.real.train.class_names == ("cup", "pen")
    assert lots.names == ("a", "b", "c")
    assert lots.train().tolist() == [0, 1, 2, 5] * 2 == lots.judged("test").tolist()
    assert domain_stream(lots.counts(), 2, order=(2, 0, 1)).steps == ((5,), (0, 1), (2,))


def test_a_test_image_of_another_session_makes_another_key():
    """Its pixels and labels stay as they are: with sessions, a class name says nothing of the session."""
    source = load("digits", data_dir=Path("unused"))
    pixels = np.arange(4 * 4, dtype=np.uint8).reshape(4, 1, 2, 2)
    names = ("a/cup", "a/pen", "b/cup", "b/pen")
    train = ImageSet.create(pixels, np.arange(4), names)
    one, other = (
        by_session(replace(source, train=train, test=ImageSet.create(pixels, np.array(labels), names)))
        for labels in ([0, 1, 2, 3], [0, 3, 2, 1])
    )
    assert one.real.test.fingerprint == other.real.test.fingerprint
    assert one.judged("test").tolist() != other.judged("test").tolist()
    assert one.key != other.key


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_of_every_class_comes_in_the_other_steps_evenly(share, real):
    lots = blurred(real, share=share, num_steps=5)
    counts = lots.counts()
    for class_id, number in enumerate(real.train.per_class_counts()):
        elsewhere = [counts.get(part * 10 + class_id, 0) for part in range(1, 5)]
        assert sum(elsewhere) == round(share * number)
        assert max(elsewhere) - min(elsewhere) <= 1
        assert counts[class_id] == number - sum(elsewhere)
    stream = blurred_stream(class_stream(10, num_steps=5, order_seed=3), counts)
    assert sorted(stream.order) == sorted(counts)
    assert stream.columns == class_stream(10, num_steps=5, order_seed=3).steps
    for step, own in enumerate(stream.columns):
        assert set(own) <= set(stream.steps[step])
        assert len(stream.classes_of(stream.steps[step])) == len(stream.steps[step])
    assert np.array_equal(lots.train(), blurred(real, share=share, num_steps=5).train())


def test_classes_come_back_with_their_other_half(real):
    lots = returning(real)
    for class_id, number in enumerate(real.train.per_class_counts()):
        assert [lots.counts()[part * 10 + class_id] for part in (0, 1)] == [number - number // 2, number // 2]
    plain = class_stream(10, num_steps=5, order_seed=1)
    stream = returning_stream(plain, after=3)
    assert stream.num_steps == 8
    assert stream.steps[0] == plain.steps[0]
    assert stream.steps[4] == (*plain.steps[4], *(10 + c for c in plain.steps[1]))
    assert stream.columns[4] == (*plain.steps[4], *plain.steps[1])
    assert stream.columns[7] == plain.steps[4]
    assert stream.num_classes == 10


def test_whole_classes_are_lots_and_leave_no_trace_in_keys(real):
    lots = Lots(real)
    assert lots.plain
    assert lots.train() is real.train.labels
    assert lots.judged("validation") is real.validation.labels
    assert lots.key == {} != returning(real).key != blurred(real, share=0.5, num_steps=2).key


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda real: under_looks(real, ("plain", "sepia")),
            "--looks sepia: unknown; known are plain, invert",
        ),
        (lambda real: under_looks(real, ("invert",)), "--looks invert: pass two or more"),
        (lambda real: under_looks(real, ("invert", "invert")), "each once"),
        (lambda real: blurred(real, share=0.5, num_steps=1), "--steps 2 or more"),
        (lambda real: blurred(real, share=1e-3, num_steps=5), "--blurred 0.001: of no class"),
        (
            lambda real: returning_stream(class_stream(10, num_steps=5, order_seed=0), after=6),
            "between 1 and the 5",
        ),
    ],
)
def test_what_makes_no_stream_is_refused(make, message, real):
    with pytest.raises(ConfigError, match=message):
        make(real)


def test_a_class_of_one_image_cannot_come_back(real):
    rows = np.concatenate([real.train.indices_of(c)[: 1 if c == 4 else 3] for c in range(10)])
    with pytest.raises(ConfigError, match="class '4' has one training image"):
        returning(replace(real, train=real.train.subset(rows)))
