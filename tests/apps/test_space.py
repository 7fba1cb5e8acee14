"""The named spaces: their sizes, their counts against built networks, and samples of any space."""

from collections import Counter
from itertools import combinations

import pytest
import torch

from apps.nas.space import Candidate, Space, load_space, sample
from atom.errors import ConfigError
from atom.nets import build, count_multiply_adds, count_parameters
from atom.streams import stream

TINY = {"channels": 1, "image_size": (8, 8), "num_classes": 3}


SIZES = [("all", 720), ("pooled", 480), ("small", 240), ("nasbench201", 15_625), ("nasbench201-n1", 15_625)]


@pytest.fixture(scope="module")
def small() -> Space:
    return load_space("small", **TINY)


def spread(space: Space, whole: Space, axis: str) -> int:
    counts = Counter(candidate.axes[axis] for candidate in space.candidates)
    levels = {candidate.axes[axis] for candidate in whole.candidates}
    return max(counts[level] for level in levels) - min(counts[level] for level in levels)


@pytest.mark.parametrize(("spec", "number"), SIZES)
def test_named_spaces_have_their_number_of_different_networks(spec, number):
    space = load_space(spec, **TINY)
    assert len(space.candidates) == len(set(space.names)) == number
    assert all(candidate.identity == candidate.name for candidate in space.candidates)


def test_named_spaces_lie_within_each_other():
    everything, pooled, small = (load_space(spec, **TINY).candidates for spec in ("all", "pooled", "small"))
    assert pooled == tuple(c for c in everything if c.axes["pooling"] != "none")
    assert small == tuple(c for c in pooled if c.axes["width"] in (32, 64))


@pytest.mark.parametrize("shape", [(1, (28, 28)), (3, (32, 32))])
def test_arithmetic_counts_equal_those_of_the_built_networks(shape):
    channels, image_size = shape
    space = load_space("all", channels=channels, image_size=image_size, num_classes=7)
    seen = set()
    for candidate in space.candidates:
        kind = tuple(candidate.axes[axis] for axis in ("width", "depth", "norm", "pooling"))
        if candidate.axes["width"] not in (32, 64) or kind in seen:
            continue  # an activation has no weights and no products
        seen.add(kind)
        net = space.build(candidate.name)
        assert candidate.parameters == count_parameters(net, channels, image_size), candidate.name
        assert candidate.multiply_adds == count_multiply_adds(net, channels, image_size), candidate.name
    assert len(seen) == 2 * 4 * 5 * 3


def test_activations_change_neither_parameters_nor_products(small):
    by_kind: dict[tuple, set] = {}
    for candidate in small.candidates:
        kind = tuple(value for axis, value in candidate.axes.items() if axis != "activation")
        by_kind.setdefault(kind, set()).add((candidate.parameters, candidate.multiply_adds))
    assert all(len(counts) == 1 for counts in by_kind.values())


def test_a_named_network_is_the_one_of_the_registry(small):
    name = small.names[17]
    ours, theirs = small.build(name), build(name, **TINY)
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("spec", ["all", "pooled", "small"])
@pytest.mark.parametrize("number", [2, 7, 20, 36])
def test_choices_of_a_sample_appear_equally_often(spec, number):
    whole = load_space(spec, **TINY)
    for seed in range(3):
        part = sample(whole, number, seed=seed)
        assert len(set(part.names)) == number
        assert max(spread(part, whole, axis) for axis in whole.candidates[0].axes) <= 1


@pytest.mark.parametrize("number", [120, 200, 239])
def test_choices_of_a_large_sample_appear_about_equally_often(small, number):
    part = sample(small, number, seed=1)
    assert max(spread(part, small, axis) for axis in small.candidates[0].axes) <= 2


def test_pairs_of_choices_are_spread_better_than_by_chance(small):
    part = sample(small, 40, seed=0)
    counts = Counter(p for c in part.candidates for p in combinations(c.axes.items(), 2))
    norm_and_pooling = [n for (a, b), n in counts.items() if (a[0], b[0]) == ("norm", "pooling")]
    assert sorted(norm_and_pooling) == pytest.approx([4] * 10, abs=1)


def test_every_step_of_a_sample_takes_the_network_whose_choices_were_taken_least(small):
    """The definition, the largest count of a choice, then their sum, then that of pairs; the first of equals."""
    order = [small.candidates[place] for place in stream(4, "nas/sample").permutation(240)]
    single, pairs, chosen = Counter(), Counter(), []

    def taken(candidate):
        counts = [single[choice] for choice in candidate.axes.items()]
        return max(counts), sum(counts), sum(pairs[pair] for pair in combinations(candidate.axes.items(), 2))

    for _ in range(50):
        chosen.append(min(order, key=taken))
        order.remove(chosen[-1])
        single.update(chosen[-1].axes.items())
        pairs.update(combinations(chosen[-1].axes.items(), 2))
    assert set(sample(small, 50, seed=4).names) == {candidate.name for candidate in chosen}


def test_a_sample_of_cells_has_each_operation_equally_often_on_each_edge():
    whole = load_space("nasbench201-n1", **TINY)
    part = sample(whole, 60, seed=0)
    assert list(whole.candidates[0].axes) == ["0-1", "0-2", "1-2", "0-3", "1-3", "2-3"]
    assert all(spread(part, whole, axis) == 0 for axis in whole.candidates[0].axes)


def test_cells_have_the_counts_of_their_networks_and_the_names_of_the_registry():
    part = sample(load_space("nasbench201-n1", **TINY), 5, seed=1)
    for candidate in part.candidates:
        net = part.build(candidate.name)
        assert candidate.parameters == count_parameters(net, 1, (8, 8))
        assert candidate.multiply_adds == count_multiply_adds(net, 1, (8, 8))
        theirs = build(candidate.name, **TINY).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())


def test_a_sample_depends_on_its_seed_alone(small):
    first, again, other = (sample(small, 12, seed=seed).names for seed in (3, 3, 4))
    assert first == again
    assert set(first) != set(other)


def test_a_smaller_sample_is_part_of_a_larger_one_and_both_keep_the_order(small):
    few, many = sample(small, 9, seed=2), sample(small, 30, seed=2)
    assert set(few.names) < set(many.names)
    for part in (few, many):
        assert list(part.names) == [name for name in small.names if name in set(part.names)]


def test_a_sample_keeps_candidates_and_shape(small):
    part = sample(small, 5, seed=0)
    known = {candidate.name: candidate for candidate in small.candidates}
    assert all(known[candidate.name] is candidate for candidate in part.candidates)
    assert (part.spec, part.channels, part.image_size, part.num_classes) == ("small", 1, (8, 8), 3)


def test_a_sample_of_everything_is_everything(small):
    assert sample(small, 240, seed=5) == small


@pytest.mark.parametrize("number", [0, -1, 241])
def test_a_sample_out_of_range_is_refused(small, number):
    with pytest.raises(ConfigError, match=rf"--sample {number}: the space small has 240 networks; pass 1 to"):
        sample(small, number, seed=0)


@pytest.mark.parametrize("number", [1, 4, 7, 20])
def test_users_networks_are_sampled_one_from_each_part_by_cost(number):
    costs = [(17 * place) % 20 + 1 for place in range(20)]
    space = Space("mine:networks", tuple(Candidate(f"n{c}", 1, c) for c in costs), 1, (8, 8), 3)
    for seed in range(5):
        part = sample(space, number, seed=seed)
        chosen = sorted(c.multiply_adds or 0 for c in part.candidates)
        sizes = [20 // number + (place < 20 % number) for place in range(number)]
        ends = [sum(sizes[: place + 1]) for place in range(number)]
        assert all(end - size < cost <= end for cost, size, end in zip(chosen, sizes, ends, strict=True))
