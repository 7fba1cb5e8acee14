"""Membership attacks: numbers equal to SciPy and slow loops, and intervals that hold what they should."""

# M members, N non-members, D numbers of an image

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm

from apps.audit.attack import Estimate, auc, best_threshold, hits, judge
from apps.audit.distances import find_copies, nearest, nearest_of_class
from apps.audit.findings import IN_SET, MADE_FROM, Scores, copies_text, judged
from apps.audit.losses import losses_after_training
from apps.audit.sample import balanced_rows
from atom import nets
from atom.errors import ConfigError
from atom.evaluate import evaluate
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from atom.streams import stream

scores = st.lists(st.integers(-3, 3), min_size=2, max_size=12).map(lambda s: np.array(s, float))


@settings(max_examples=60, deadline=None)
@given(members=scores, others=scores)
def test_auc_is_that_of_scipy_and_of_counting_pairs(members: np.ndarray, others: np.ndarray) -> None:
    found = auc(members, others)
    pairs = [(m > n) + 0.5 * (m == n) for m in members for n in others]
    assert found.value == pytest.approx(np.mean(pairs), abs=1e-12)
    statistic = mannwhitneyu(members, others).statistic
    assert found.value == pytest.approx(statistic / (len(members) * len(others)), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    turned = auc(-members, -others)
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(members=scores, others=scores)
def test_best_threshold_is_that_of_trying_all(members: np.ndarray, others: np.ndarray) -> None:
    def gain(threshold: float) -> float:
        return float((members >= threshold).mean() - (others >= threshold).mean())

    found = best_threshold(members, others)
    assert gain(found) == pytest.approx(max(gain(t) for t in (*members, *others)), abs=1e-12)


def coverage(shift: float, num: int, other: int, *, trials: int = 120) -> dict[str, float]:
    """How often the intervals hold the truth, for normal scores whose means are `shift` apart."""
    truth = {
        "auc": norm.cdf(shift / np.sqrt(2)),
        "hits": norm.sf(norm.isf(0.01) - shift),
        "advantage": 2 * norm.cdf(shift / 2) - 1,
    }
    held = dict.fromkeys(truth, 0)
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        found = judge(rng.normal(shift, 1, num), rng.normal(0, 1, other), seed=trial)
        for name, true in truth.items():
            estimate: Estimate = getattr(found, name)
            held[name] += estimate.low <= true <= estimate.high
    return {name: count / trials for name, count in held.items()}


@pytest.mark.parametrize(("num", "other"), [(10, 500), (300, 300)])
def test_intervals_hold_chance_for_scores_that_know_nothing(num: int, other: int) -> None:
    assert min(coverage(0, num, other).values()) > 0.9


@pytest.mark.parametrize(("num", "other"), [(10, 500), (300, 300)])
def test_intervals_of_auc_and_hits_hold_the_truth_of_an_attack_that_works(num: int, other: int) -> None:
    found = coverage(1.5, num, other)
    assert min(found["auc"], found["hits"]) > 0.9


def test_advantage_does_not_profit_from_its_own_choice_of_threshold() -> None:
    rng = np.random.default_rng(0)
    fair, largest = [], []
    for trial in range(100):
        members, others = rng.normal(size=(2, 100))
        fair.append(judge(members, others, seed=trial).advantage.value)
        threshold = best_threshold(members, others)
        largest.append((members >= threshold).mean() - (others >= threshold).mean())
    assert abs(np.mean(fair)) < 0.03
    assert np.mean(largest) > 0.06


def test_perfect_scores_are_worth_all_and_few_images_still_leave_doubt() -> None:
    found = judge(np.zeros(10), -np.arange(1.0, 501.0), seed=0)
    assert (found.advantage.value, found.auc.value, found.hits.value) == (1.0, 1.0, 1.0)
    assert 0.5 < found.advantage.low < 0.9
    assert 0.8 < found.auc.low < 0.99
    assert 0.5 < found.hits.low < 0.9
    assert found.hits.text == f"1.00 [{found.hits.low:.2f}, 1.00]"


def test_hits_at_one_percent_are_those_above_the_threshold_and_none_of_few_non_members() -> None:
    others, members = np.arange(500.0), np.array([493.0, 494.5, 497.0, 3.0])
    assert hits(members, others).value == 0.5
    assert hits(members, others[:99]).value is None
    assert hits(members, others[:99]).text == "? [0.00, 1.00]"


def test_thresholds_follow_the_seed_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.5, 1, 60), rng.normal(0, 1, 60)
    assert judge(members, others, seed=3) == judge(members, others, seed=3)
    values = {judge(members, others, seed=seed).advantage.value for seed in range(5)}
    assert len(values) > 1


@pytest.mark.parametrize(
    ("members", "others", "message"),
    [
        ([1.0], [0.0, 1.0], "1 members and 2 non-members; expected 2 or more"),
        ([1.0, np.nan], [0.0, 1.0], "a score is NaN or infinite"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused(
    members: list[float], others: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        judge(np.array(members), np.array(others), seed=0)


def test_nearest_is_that_of_slow_loops_and_exactly_0_for_a_copy() -> None:
    rng = np.random.default_rng(0)
    images, pool = rng.normal(5, 1, (7, 4)).astype(np.float32), rng.normal(5, 1, (5, 4)).astype(np.float32)
    images[2] = pool[3]
    found = nearest(torch.from_numpy(images), torch.from_numpy(pool))
    slow = [min(np.linalg.norm(a.astype(float) - b) for b in pool) for a in images]
    assert found.numpy() == pytest.approx(slow, rel=1e-12, abs=1e-12)
    assert found[2] == 0
    itself = nearest(torch.from_numpy(pool), torch.from_numpy(pool), but_itself=True)
    slow = [
        min(np.linalg.norm(a.astype(float) - b) for j, b in enumerate(pool) if j != i)
        for i, a in enumerate(pool)
    ]
    assert itself.numpy() == pytest.approx(slow, rel=1e-12)
    assert nearest(torch.ones(1, 4), torch.ones(1, 4), but_itself=True).isinf().all()


def test_nearest_of_a_class_looks_at_no_other_class() -> None:
    images, labels = torch.tensor([[0.0], [0.0]]), np.array([1, 0])
    pool, pool_labels = torch.tensor([[0.0], [3.0], [7.0]]), np.array([1, 0, 0])
    assert nearest_of_class(images, labels, pool, pool_labels).tolist() == [0.0, 3.0]


def test_near_copies_are_those_nearer_than_members_are_to_each_other() -> None:
    between = np.linspace(1, 3, 101)
    found = find_copies(np.array([0.0, 1.01, 1.5, 4.0]), between)
    assert found is not None
    assert (found.num_near, found.num_images) == (2, 4)
    assert (found.closest, found.median, found.real_closest) == (
        0.0,
        pytest.approx(0.6275),
        pytest.approx(0.51),
    )
    assert "2 of 4 images are near-copies" in copies_text("atom", found)
    assert find_copies(np.array([1.0]), np.array([np.inf])) is None
    twins = find_copies(np.array([0.0, 1.0]), np.zeros(3))
    assert twins is not None
    assert twins.num_near == 1


def test_a_set_of_copies_gives_its_images_away_and_an_unrelated_one_gives_away_nothing() -> None:
    rng = np.random.default_rng(0)
    members, others = torch.from_numpy(rng.normal(size=(2, 300, 6)).astype(np.float32))
    labels = np.arange(300) % 3
    attacks = {}
    for name, made in (("copies", members[:30]), ("noise", torch.from_numpy(rng.normal(size=(30, 6))))):
        of = [-nearest_of_class(real, labels, made, labels[:30]) for real in (members, others)]
        attacks[name] = Scores(*of, own=np.zeros(30) if name == "copies" else None)
    told, gone, copied = judged("x", attacks, seed=0)
    assert (told.members, gone.members, copied.members) == (MADE_FROM, MADE_FROM, IN_SET)
    assert copied.verdict.advantage.low > 0.85
    assert gone.verdict.advantage.low <= 0 <= gone.verdict.advantage.high
    assert gone.verdict.auc.low <= 0.5 <= gone.verdict.auc.high
    assert copied.plain()["num_members"] == 30


def test_as_many_members_as_non_members_are_drawn_of_every_class() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.permutation([0] * 30 + [1] * 20 + [2] * 4), rng.permutation([0] * 10 + [1] * 30 + [2] * 9))
    drawn = balanced_rows(labels, num_classes=3, most=36, seed=0)
    for rows, own in zip(drawn, labels, strict=True):
        assert np.bincount(own[rows]).tolist() == [10, 12, 4]
        assert len(set(rows)) == len(rows)
    fewer = balanced_rows(labels, num_classes=3, most=12, seed=0)
    assert set(fewer[0]) < set(drawn[0])


def test_losses_are_those_of_the_network_that_evaluation_trains() -> None:
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 1, 8, 8, generator=rng), torch.arange(6) % 3
    asked, asked_labels = torch.randn(40, 1, 8, 8, generator=rng), torch.arange(40) % 3
    trained = resolve_evaluation(
        EvaluateSettings(epochs=3, eval_precision="float32"), device_kind="cpu", symbols=True
    )
    network, cpu = "convnet-w8-d1", torch.device("cpu")
    same = {"network": network, "num_classes": 3, "settings": trained, "device": cpu, "threads": 1}
    losses = losses_after_training(
        images, labels, asked_TCHW=asked, asked_labels_T=asked_labels, seed=4, **same
    )
    again = losses_after_training(
        images, torch.eye(3)[labels], asked_TCHW=asked, asked_labels_T=asked_labels, seed=4, **same
    )
    assert losses.shape == (40,)
    assert losses == pytest.approx(again, rel=1e-5)
    judged_by = evaluate(images, labels, test_images=asked, test_labels=asked_labels, seeds=[4], **same)
    # An image below the logarithm of 2 is right, one above that of 3 is wrong.
    right = judged_by.accuracies[0] / 100
    assert (losses < np.log(2)).mean() <= right <= (losses < np.log(3)).mean()
    net = nets.build(network, channels=1, image_size=(8, 8), num_classes=3)
    nets.fill_weights(net, stream(4, "evaluate/weights"))
    assert losses.mean() != pytest.approx(
        torch.nn.functional.cross_entropy(net(asked), asked_labels).item(), rel=1e-3
    )


def test_an_image_of_a_class_that_the_set_lacks_is_compared_with_all() -> None:
    images, pool = torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [9.0]])
    found = nearest_of_class(images, np.array([0, 2]), pool, np.array([1, 0]))
    assert found.tolist() == [9.0, 4.0]
