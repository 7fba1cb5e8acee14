"""The memory of a stream: what it holds, how it shrinks, its reservoir, and that saving it changes nothing."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from apps.continual.exemplars import Exemplars
from apps.continual.memory import Memory, Reservoir
from atom import formation
from atom.errors import ArtifactError, ConfigError, ShapeError
from atom.preprocess import Preprocess
from atom.streams import stream

C, H, W = 2, 5, 3
PREPROCESS = Preprocess(torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.3]))


def numbered(number: int, *, class_id: int) -> Exemplars:
    """Images whose first pixel is their class and whose second is their place."""
    images = np.random.default_rng(class_id).integers(0, 256, (number, C, H, W)).astype(np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = class_id, np.arange(number)
    return Exemplars(images)


def packed(number: int, storage="uint8-scaled") -> Exemplars:
    white = torch.from_numpy(np.random.default_rng(7).normal(size=(number, C, H, W)).astype(np.float32))
    return Exemplars.from_white(white, storage, preprocess=PREPROCESS, factor=2)


def places(memory: Memory | Reservoir) -> dict[int, list[int]]:
    return {class_id: memory[class_id].images_NCHW[:, 0, 0, 1].tolist() for class_id in memory.classes}


def filled(sizes: dict[int, int], *, capacity: int, seed: int) -> Reservoir:
    reservoir = Reservoir(capacity, seed=seed)
    for class_id, number in sizes.items():
        reservoir.add(class_id, numbered(number, class_id=class_id))
    return reservoir


def same(one: Memory | Reservoir, other: Memory | Reservoir) -> bool:
    ones, others = one.contents(PREPROCESS), other.contents(PREPROCESS)
    assert ones is not None
    assert others is not None
    return all(torch.equal(mine, theirs) for mine, theirs in zip(ones, others, strict=True))


def test_contents_are_by_class_then_by_importance_whatever_the_order_of_arrival():
    memory = Memory({3: numbered(2, class_id=3), 1: packed(3), 0: numbered(4, class_id=0)})
    contents = memory.contents(PREPROCESS)
    assert contents is not None
    images, labels = contents
    assert labels.tolist() == [0] * 4 + [1] * 12 + [3] * 2
    assert labels.dtype == torch.int64
    assert images.dtype == torch.float32
    assert torch.equal(images[:4], PREPROCESS.apply(memory[0].images_NCHW))
    assert torch.equal(images[4:16], memory[1].white(PREPROCESS))
    assert torch.equal(images[16:], PREPROCESS.apply(memory[3].images_NCHW))
    assert memory.num_images == 9
    assert memory.num_bytes == 6 * 30 + 3 * 38


def test_empty_memory_has_no_contents_and_costs_nothing():
    memory = Memory()
    assert memory.contents(PREPROCESS) is None
    assert (memory.num_images, memory.num_bytes, memory.classes) == (0, 0, ())
    memory.add(0, numbered(3, class_id=0))
    memory.shrink(0)
    assert memory.contents(PREPROCESS) is None
    assert memory.classes == (0,)


def test_shrinking_keeps_the_first_of_every_class_and_shrinking_twice_is_shrinking_once():
    def memory() -> Memory:
        return Memory({c: numbered(n, class_id=c) for c, n in ((0, 6), (1, 2), (2, 4))})

    once, twice = memory(), memory()
    once.shrink(3)
    twice.shrink(5)
    twice.shrink(3)
    assert places(once) == {0: [0, 1, 2], 1: [0, 1], 2: [0, 1, 2]}
    assert same(once, twice)
    with pytest.raises(ConfigError, match="quota of -1"):
        once.shrink(-1)


def test_class_that_comes_twice_or_with_other_images_is_refused():
    memory = Memory({2: numbered(3, class_id=2)})
    with pytest.raises(ConfigError, match="class 2 is there already"):
        memory.add(2, numbered(3, class_id=2))
    with pytest.raises(ShapeError, match=r"class 5 have shape \(2, 3, 5\), those of class 2 \(2, 5, 3\)"):
        memory.add(5, Exemplars(np.zeros((1, C, W, H), np.uint8)))


def test_saved_memory_comes_back_the_same_and_has_the_same_bytes():
    memory = Memory({4: packed(3), 1: packed(2, "float32"), 0: numbered(3, class_id=0)})
    memory.shrink(2)
    data = memory.to_bytes()
    back = Memory.from_bytes(data)
    assert same(memory, back)
    assert [back[c].storage for c in back.classes] == ["uint8", "float32", "uint8-scaled"]
    assert [back[c].factor for c in back.classes] == [1, 2, 2]
    assert back.to_bytes() == data
    assert Memory({c: memory[c] for c in (0, 1, 4)}).to_bytes() == data
    assert Memory.from_bytes(Memory().to_bytes()).classes == ()


def test_saved_memory_of_compressed_images_holds_the_files_it_counts():
    smooth = np.arange(3 * 2 * 40 * 30).reshape(3, 2, 40, 30).astype(np.uint8)
    ranges = np.ones((3, 2), np.float32)
    memory = Memory({4: Exemplars(smooth).compressed(), 1: Exemplars(smooth[::-1], 2, ranges).compressed()})
    data = memory.to_bytes()
    back = Memory.from_bytes(data)
    assert same(memory, back)
    assert [back[c].files for c in (1, 4)] == [memory[c].files for c in (1, 4)]
    assert back.num_bytes == memory.num_bytes < len(data) < 6 * 2 * 40 * 30
    assert back.to_bytes() == data
    assert Memory.from_bytes(Memory({0: Exemplars(smooth[:0]).compressed()}).to_bytes()).num_images == 0


def test_memory_of_stored_images_trains_on_what_they_decode_to():
    memory = Memory({0: packed(2, "float32")})
    contents = memory.contents(PREPROCESS)
    assert contents is not None
    assert torch.equal(contents[0], formation.decode(torch.from_numpy(memory[0].images_NCHW), 2))


def test_soft_labels_are_saved_counted_and_given_beside_the_classes():
    pixels = np.zeros((2, 1, 4, 4), np.uint8)
    soft = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], np.float32)
    memory = Memory({2: Exemplars(pixels, factor=2, soft_NK=soft), 0: Exemplars(pixels, factor=2)})
    again = Memory.from_bytes(memory.to_bytes())
    assert again.num_bytes == memory.num_bytes == 4 * 16 + 2 * 3 * 4
    targets = again.soft_targets(3)
    assert targets is not None
    assert targets[:8].tolist() == [[1, 0, 0]] * 8
    assert np.array_equal(targets[8:].numpy(), soft.repeat(4, axis=0))
    again.shrink(1)
    assert np.array_equal(again[2].soft_NK, soft[:1])
    assert Memory({0: Exemplars(pixels)}).soft_targets(3) is None


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: b"", lambda d: b"\x80\x04pickle", lambda d: d[9:]]
)
@pytest.mark.parametrize("kind", [Memory, Reservoir])
def test_damaged_bytes_are_refused(kind, change):
    source = Memory() if kind is Memory else Reservoir(4, seed=0)
    source.add(0, numbered(3, class_id=0))
    with pytest.raises(
        ArtifactError, match=r"saved memory: expected a (memory of version 1|reservoir of version 2)"
    ):
        kind.from_bytes(change(source.to_bytes()))


def test_memory_is_no_reservoir_and_the_reverse():
    with pytest.raises(ArtifactError, match=r"expected a reservoir .*\(it is a memory of version 1\)"):
        Reservoir.from_bytes(Memory().to_bytes())
    with pytest.raises(ArtifactError, match=r"expected a memory .*\(it is a reservoir of version 2\)"):
        Memory.from_bytes(filled({0: 3}, capacity=2, seed=0).to_bytes())


def test_a_reservoir_stored_before_its_limit_in_bytes_is_refused_by_its_version():
    older = Reservoir(2, seed=0).to_bytes().replace(b'\\"format_version\\": 2', b'\\"format_version\\": 1')
    with pytest.raises(
        ArtifactError, match=r"expected a reservoir of version 2.*\(it is a reservoir of version 1\)"
    ):
        Reservoir.from_bytes(older)


def test_reservoir_keeps_everything_until_it_is_full_and_its_capacity_from_then_on():
    reservoir = Reservoir(7, seed=0)
    for class_id, expected in ((0, 3), (1, 6), (2, 7), (3, 7)):
        reservoir.add(class_id, numbered(3, class_id=class_id))
        assert reservoir.num_images == expected
        assert reservoir.num_bytes == 30 * expected


def uneven(number: int, *, class_id: int) -> Exemplars:
    """Images whose files have very different lengths."""
    rng, images = np.random.default_rng(class_id), np.zeros((number, C, 16, 16), np.uint8)
    for row in range(number):
        rows = rng.integers(0, 17)
        images[row, :, :rows] = rng.integers(0, 256, (C, rows, 16))
    return Exemplars(images)


def test_compressed_reservoir_fills_its_bytes_whatever_the_order_of_the_classes():
    sizes, limit, kept = {0: 5, 1: 7, 2: 4}, 1500, []
    for order in itertools.permutations(sizes):
        reservoir = Reservoir(100, seed=1, compress=True, max_bytes=limit)
        for class_id in order:
            reservoir.add(class_id, uneven(sizes[class_id], class_id=class_id))
            assert reservoir.num_bytes <= limit
        kept.append({c: reservoir[c].files for c in sizes})
    assert all(other == kept[0] for other in kept)
    # The definition: by the random numbers, until one does not fit.
    everything = [
        (key, size)
        for c, number in sizes.items()
        for key, size in zip(
            stream(1, "continual/reservoir", 0, c).random(number),
            uneven(number, class_id=c).compressed().sizes,
            strict=True,
        )
    ]
    total = np.cumsum([size for _, size in sorted(everything)])
    assert sum(len(files) for files in kept[0].values()) == (total <= limit).sum() < len(everything)


def test_compressed_reservoir_comes_back_the_same():
    reservoir = Reservoir(100, seed=1, compress=True, max_bytes=1500)
    reservoir.add(0, uneven(9, class_id=0))
    back = Reservoir.from_bytes(reservoir.to_bytes())
    for one in (reservoir, back):
        one.add(3, uneven(9, class_id=3))
    assert back.to_bytes() == reservoir.to_bytes()


def test_reservoir_does_not_depend_on_the_order_of_the_classes_and_does_on_the_seed():
    sizes = {0: 5, 1: 7, 2: 4}
    kept = [
        places(filled({c: sizes[c] for c in order}, capacity=6, seed=1))
        for order in itertools.permutations(sizes)
    ]
    assert all(other == kept[0] for other in kept)
    assert places(filled(sizes, capacity=6, seed=2)) != kept[0]


def test_reservoir_loses_images_of_a_class_from_the_end_only():
    reservoir = Reservoir(6, seed=5)
    before: dict[int, list[int]] = {}
    for class_id in range(6):
        reservoir.add(class_id, numbered(8, class_id=class_id))
        after = places(reservoir)
        assert all(places_before[: len(after[c])] == after[c] for c, places_before in before.items())
        before = after


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_reservoir_is_a_uniform_sample_of_everything_seen_after_every_step(seen):
    sizes, capacity, draws = dict(list({0: 4, 1: 2, 2: 3}.items())[:seen]), 2, 900
    images = [(c, row) for c, number in sizes.items() for row in range(number)]
    subsets = {subset: 0 for subset in itertools.combinations(images, capacity)}
    for seed in range(draws):
        kept = places(filled(sizes, capacity=capacity, seed=seed))
        subsets[tuple(sorted((c, row) for c, rows in kept.items() for row in rows))] += 1
    # Every subset of that size is as likely as any other: more than each image alone being so.
    assert stats.chisquare(list(subsets.values())).pvalue > 0.01


def test_resumed_reservoir_goes_on_as_if_it_had_never_stopped():
    whole, half = filled({0: 6, 1: 6, 2: 6}, capacity=5, seed=3), filled({0: 6, 1: 6}, capacity=5, seed=3)
    resumed = Reservoir.from_bytes(half.to_bytes())
    resumed.add(2, numbered(6, class_id=2))
    assert same(resumed, whole)
    assert resumed.to_bytes() == whole.to_bytes()


def test_reservoir_refuses_a_class_twice_even_if_it_has_lost_all_its_images():
    reservoir = filled({0: 1, 1: 60}, capacity=1, seed=0)
    assert places(reservoir)[0] == []
    with pytest.raises(ConfigError, match="class 0 is there already"):
        reservoir.add(0, numbered(1, class_id=0))
    contents = reservoir.contents(PREPROCESS)
    assert contents is not None
    assert contents[1].tolist() == [1]
    with pytest.raises(ConfigError, match="reservoir of 0 images"):
        Reservoir(0, seed=0)
