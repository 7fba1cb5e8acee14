"""Class streams: the order by seed, the cut into steps, and what a user writes for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.continual.stream import ClassStream, class_order, class_stream, cut, parse_order, parse_stream
from atom.errors import ConfigError


@pytest.mark.parametrize(
    ("spec", "steps", "expected"),
    [
        ("seq-cifar10", None, ("cifar10", 5)),
        ("seq-cifar100", None, ("cifar100", 10)),
        ("seq-cifar100", 20, ("cifar100", 20)),
        ("seq-tinyimagenet", None, ("tinyimagenet", 10)),
        ("seq-fashionmnist:/srv/Fashion", None, ("fashionmnist:/srv/Fashion", 5)),
        (" SEQ-CIFAR10 ", None, ("CIFAR10", 5)),
        ("seq-parquet:/srv/seq-x:y", 3, ("parquet:/srv/seq-x:y", 3)),
        ("digits", 2, ("digits", 2)),
    ],
)
def test_stream_names_give_their_source_and_steps(spec, steps, expected):
    assert parse_stream(spec, steps) == expected


@pytest.mark.parametrize(
    ("spec", "steps", "message"),
    [
        ("folder:/srv/pets", None, "has no number of steps of its own; pass --steps, or one of seq-cifar10,"),
        ("seq-parquet:/srv/x", None, "pass --steps"),
        ("cifar10", None, "pass --steps"),
        ("seq-", 3, "names no data source"),
        ("", None, "names no data source"),
        ("seq-cifar10", 0, "--steps 0 is below 1"),
    ],
)
def test_stream_that_cannot_be_understood_is_refused(spec, steps, message):
    with pytest.raises(ConfigError, match=message):
        parse_stream(spec, steps)


@pytest.mark.parametrize("seed", range(5))
def test_orders_are_those_of_the_published_experiment_and_leave_the_global_generator_alone(seed):
    # The published script seeds NumPy's global generator and draws a permutation at once.
    np.random.seed(seed)
    expected = np.random.permutation(100).tolist()
    before = np.random.get_state()[1].tolist()
    order = class_order(100, order_seed=seed)
    assert list(order) == expected
    assert np.random.get_state()[1].tolist() == before
    assert all(type(class_id) is int for class_id in order)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_steps_are_disjoint_cover_all_classes_and_the_first_are_the_larger(num_classes, num_steps, seed):
    num_steps = min(num_steps, num_classes)
    stream = class_stream(num_classes, num_steps=num_steps, order_seed=seed)
    sizes = [len(classes) for classes in stream.steps]
    assert sorted(sum(stream.steps, ())) == list(range(num_classes))
    assert stream.num_steps == num_steps
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    assert stream.seen(num_steps - 1) == stream.order == class_order(num_classes, order_seed=seed)


def test_classes_seen_are_those_of_the_steps_so_far():
    stream = class_stream(7, num_steps=3, order_seed=0)
    assert [len(stream.seen(step)) for step in range(3)] == [3, 5, 7]
    assert stream.seen(1) == stream.steps[0] + stream.steps[1]
    for step in (-1, 3):
        with pytest.raises(ConfigError, match=f"step {step} is not one of its steps 0 to 2"):
            stream.seen(step)


@pytest.mark.parametrize("num_steps", [0, -1, 4])
def test_more_steps_than_classes_or_none_are_refused(num_steps):
    with pytest.raises(ConfigError, match=f"--steps {num_steps}: the source has 3 classes.*pass 1 to 3"):
        class_stream(3, num_steps=num_steps, order_seed=0)


def test_class_order_by_labels_names_or_file(tmp_path):
    names = ("cat", "2", "dog")
    assert parse_order(["dog", "cat", "2"], names) == (2, 0, 1)
    assert parse_order(["2", "0", "1"], names) == (2, 0, 1)
    file = tmp_path / "a file"
    file.write_text("\ufeff1\n0\n\n 2 \n", encoding="utf-8")
    assert parse_order([str(file)], names) == (1, 0, 2)
    assert parse_order(["one"], ("one",)) == (0,)


def test_numbers_that_name_classes_are_names():
    assert parse_order(["2", "0", "1"], ("1", "2", "0")) == (1, 2, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["cat", "dgo"], "has no class 'dgo'; did you mean 'dog'"),
        (["cat", "cat"], "names the class 'cat' twice"),
        (["3", "0", "1"], "has no class '3'"),
        (["cat", "dog"], "names 2 of 3 classes, without '2'"),
    ],
)
def test_class_order_that_is_not_all_classes_once_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        parse_order(given, ("cat", "2", "dog"))


@pytest.mark.parametrize("sizes", [(), (2, 0, 1), (2,), (2, 2)])
def test_sizes_of_steps_that_are_not_all_classes_are_refused(sizes):
    with pytest.raises(ConfigError, match="in all"):
        cut((0, 2, 1), sizes)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_order_seed_outside_the_generators_range_is_refused(seed):
    with pytest.raises(ConfigError, match="out of range"):
        class_order(3, order_seed=seed)


@pytest.mark.parametrize(
    ("order", "steps"), [((0, 1), ((0,),)), ((0, 2), ((0,), (2,))), ((1, 0), ((0,), (1,)))]
)
def test_stream_whose_steps_do_not_cut_the_order_is_refused(order, steps):
    with pytest.raises(ConfigError, match="make streams with class_stream"):
        ClassStream(order, steps)
