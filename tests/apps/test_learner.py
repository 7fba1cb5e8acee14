"""Learners: what each may look at, and what it carries from step to step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.continual.answers import recall_answers, record_answers
from apps.continual.learner import (
    LEARNERS,
    RESTARTING,
    LearnerState,
    StepData,
    _among_seen,
    deciding,
    learn,
    predict_seen,
    with_statistics_of,
)
from apps.continual.settings import JOINT_IMAGES_SHOWN, STEP_IMAGES_SHOWN, LearnerSettings
from atom.errors import ArtifactError, ConfigError, DataError, NotFiniteError, ShapeError
from atom.settings import DEFAULT_DSA, DSA_FOR_SYMBOLS, EvaluateSettings
from atom.streams import stream

CPU = torch.device("cpu")
K, C, H, W = 5, 2, 8, 6
STEPS = ((3, 0), (4, 1))
NETWORK = "convnet-w32-d1-batch-relu-avg"  # BatchNorm: buffers, and statistics that a stray pass would change
SETTINGS = LearnerSettings(
    step_epochs=3, batch_current=4, batch_memory=3, joint_epochs=3, replay_dsa_strategy="color_crop_cutout"
)
TRAIN = EvaluateSettings(
    epochs=3, batch_train=4, lr_net=0.05, eval_dsa_strategy="color_crop", eval_precision="float32"
)
GOING_ON = [learner for learner in LEARNERS if learner not in RESTARTING]


def made(classes, per_class, purpose):
    """Classes that differ by the column that is bright."""
    rng = stream(0, f"test/learner/{purpose}")
    labels_N = np.repeat(sorted(classes), per_class)
    images_NCHW = 0.3 * rng.standard_normal((len(labels_N), C, H, W), dtype=np.float32)
    for image, label in zip(images_NCHW, labels_N, strict=True):
        image[:, :, label] += 1.5
    return torch.tensor(images_NCHW), torch.tensor(labels_N)


def joined(*parts):
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


REAL = [made(classes, 7, f"real {step}") for step, classes in enumerate(STEPS)]
FIRST_MEMORY = made(STEPS[0], 4, "memory 0")
SMALLER = FIRST_MEMORY[0][[0, 1, 4, 5]], FIRST_MEMORY[1][[0, 1, 4, 5]]
DATA = (
    StepData(
        step=0,
        step_classes=STEPS[0],
        seen_classes=STEPS[0],
        num_classes=K,
        current=REAL[0],
        memory_after=FIRST_MEMORY,
        everything_seen=REAL[0],
    ),
    StepData(
        step=1,
        step_classes=STEPS[1],
        seen_classes=STEPS[0] + STEPS[1],
        num_classes=K,
        current=REAL[1],
        memory_before=FIRST_MEMORY,
        memory_after=joined(SMALLER, made(STEPS[1], 2, "memory 1")),
        everything_seen=joined(*REAL),
    ),
)


def step(learner, state, data, **changes):
    given = {"network": NETWORK, "settings": SETTINGS, "train_settings": TRAIN, "seed": 0, "device": CPU}
    return learn(learner, state, data, **{**given, **changes})


def both_steps(learner, **changes):
    return step(learner, step(learner, None, DATA[0], **changes), DATA[1], **changes)


@pytest.fixture(scope="module")
def first():
    """The state after the first step, which all learners that go on share but for the answers of der++."""
    return step("der++", None, DATA[0])


def same(left, right):
    assert set(left.weights) == set(right.weights)
    return all(np.array_equal(left.weights[name], right.weights[name]) for name in left.weights)


# What learners depend on.


@pytest.mark.parametrize("learner", LEARNERS)
def test_same_arguments_give_the_same_bits(learner):
    assert same(both_steps(learner), both_steps(learner))


@pytest.mark.parametrize("learner", LEARNERS)
def test_another_seed_gives_another_network(learner):
    assert not same(step(learner, None, DATA[0]), step(learner, None, DATA[0], seed=1))


OTHER_SETTINGS = {
    "step_epochs": 4,
    "batch_current": 5,
    "batch_memory": 2,
    "lr_replay": 0.2,
    "momentum_replay": 0.5,
    "weight_decay_replay": 0.1,
    "der_alpha": 0.7,
    "der_beta": 0.9,
    "replay_dsa_strategy": "flip",
    "joint_epochs": 4,
    "epochs": 4,
    "lr_net": 0.1,
    "momentum_net": 0.5,
    "weight_decay": 0.1,
    "batch_train": 2,
    "eval_dsa_strategy": "flip",
    "eval_precision": "bfloat16",
    "initial_weights": "drawn",
    "protocol": "idc",
}


def test_no_setting_is_missing_in_the_next_test():
    assert set(OTHER_SETTINGS) == set(LearnerSettings.model_fields) | set(EvaluateSettings.model_fields)


@pytest.mark.parametrize("learner", LEARNERS)
def test_settings_decide_a_result_exactly_where_they_are_said_to(learner):
    plain = both_steps(learner)
    for name, value in OTHER_SETTINGS.items():
        settings, train_settings = (
            part.model_copy(update={name: value}) if name in type(part).model_fields else part
            for part in (SETTINGS, TRAIN)
        )
        other = both_steps(learner, settings=settings, train_settings=train_settings)
        decides = deciding(learner, settings, train_settings) != deciding(learner, SETTINGS, TRAIN)
        assert decides is not same(plain, other), name


def restated(state, network=NETWORK):
    return with_statistics_of(
        state,
        network,
        images_NCHW=REAL[1][0],
        num_classes=K,
        train_settings=TRAIN,
        device=CPU,
    )


def test_statistics_of_a_step_replace_those_of_the_training_and_nothing_else(first):
    asked = restated(first)
    buffers = {name for name in first.weights if "running" in name or "tracked" in name}
    assert buffers
    for name, value in first.weights.items():
        assert np.array_equal(value, asked.weights[name]) is (name not in buffers), name
    assert asked.logits is first.logits
    assert same(restated(first), asked)


def test_a_network_without_batch_norm_has_no_statistics_to_restate():
    network = "convnet-w8-d1"
    assert restated(step("er", None, DATA[0], network=network), network) is None


@pytest.mark.parametrize("learner", ["er", "gdumb"])
def test_a_network_with_dropout_neither_heeds_nor_moves_the_global_generator(learner):
    data = replace(DATA[0], current=REAL[0], memory_after=FIRST_MEMORY)
    settings = SETTINGS.model_copy(update={"step_epochs": 1})
    train = TRAIN.model_copy(update={"epochs": 1})
    states, drawn = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(step(learner, None, data, network="vit", settings=settings, train_settings=train))
        drawn.append(torch.rand(1).item())
    assert same(*states)
    for seed, number in zip((1, 2), drawn, strict=True):
        torch.manual_seed(seed)
        assert torch.rand(1).item() == number


@pytest.mark.parametrize("learner", GOING_ON)
def test_resuming_from_bytes_equals_going_on(learner):
    before = step(learner, None, DATA[0])
    resumed = step(learner, LearnerState.from_bytes(before.to_bytes()), DATA[1])
    uninterrupted = step(learner, before, DATA[1])
    assert same(resumed, uninterrupted)
    assert resumed.to_bytes() == uninterrupted.to_bytes()


def test_first_step_is_the_same_for_all_that_go_on(first):
    assert all(same(step(learner, None, DATA[0]), first) for learner in GOING_ON)


@pytest.mark.parametrize("learner", ["er", "er-ace", "der++"])
def test_learners_differ_from_fine_tuning_once_there_is_a_memory(learner, first):
    assert not same(step(learner, first, DATA[1]), step("finetune", first, DATA[1]))


@pytest.mark.parametrize("empty", [None, (torch.zeros(0, C, H, W), torch.zeros(0, dtype=torch.int64))])
def test_er_and_der_with_an_empty_memory_are_fine_tuning(empty, first):
    data = replace(DATA[1], memory_before=empty, memory_after=empty)
    finetuned = step("finetune", first, data)
    assert same(step("er", first, data), finetuned)
    assert same(step("der++", first, data), finetuned)


def test_der_of_weights_zero_is_fine_tuning(first):
    settings = SETTINGS.model_copy(update={"der_alpha": 0.0, "der_beta": 0.0})
    assert same(step("der++", first, DATA[1], settings=settings), step("finetune", first, DATA[1]))


def test_gdumb_learns_soft_labels_and_the_others_the_classes():
    images, labels = DATA[1].memory_after
    swapped = torch.tensor([{0: 3, 3: 0, 1: 4, 4: 1}[int(label)] for label in labels])
    soft = replace(DATA[1], soft_targets=torch.nn.functional.one_hot(swapped, K).float())
    told_so = replace(DATA[1], memory_after=(images, swapped))
    long = {"train_settings": TRAIN.model_copy(update={"epochs": 60})}
    answers = [
        predict_seen(
            step("gdumb", None, data, **long),
            NETWORK,
            images_TCHW=images,
            num_classes=K,
            train_settings=TRAIN,
            device=CPU,
        ).argmax(1)
        for data in (soft, told_so)
    ]
    assert (answers[0] == swapped).float().mean() > 0.8
    assert (answers[0] == answers[1]).float().mean() > 0.8
    state = step("er-ace", None, DATA[0])
    assert same(step("er-ace", state, soft), step("er-ace", state, DATA[1]))


def test_what_soft_labels_say_of_classes_to_come_is_left_out():
    soft = torch.tensor([[0.2, 0.5, 0.0, 0.2, 0.1], [0.0, 0.5, 0.5, 0.0, 0.0]])
    among = _among_seen(soft, torch.tensor([3, 0]), (0, 3))
    assert torch.allclose(among, torch.tensor([[0.5, 0, 0, 0.5, 0], [1.0, 0, 0, 0, 0]]))
    with pytest.raises(ShapeError, match=r"soft targets \(2, 5\), expected \(8, 5\)"):
        replace(DATA[0], soft_targets=soft)


def test_gdumb_depends_on_the_memory_alone():
    alone = StepData(1, STEPS[1], STEPS[0] + STEPS[1], K, memory_after=DATA[1].memory_after)
    whole = step("gdumb", None, DATA[1])
    assert same(step("gdumb", None, alone), whole)
    images, labels = DATA[1].memory_after
    assert not same(step("gdumb", None, replace(alone, memory_after=(images + 1, labels))), whole)


def test_joint_depends_on_everything_seen():
    old, labels = DATA[1].everything_seen
    changed = old.clone()
    changed[0] += 1
    assert not same(
        step("joint", None, DATA[1]), step("joint", None, replace(DATA[1], everything_seen=(changed, labels)))
    )


@pytest.mark.parametrize("learner", RESTARTING)
def test_restarting_learners_draw_other_weights_in_every_step(learner):
    parts = {"memory_after": FIRST_MEMORY, "everything_seen": REAL[0]}
    again = replace(DATA[1], **parts)
    assert not same(step(learner, None, DATA[0]), step(learner, None, again))


@pytest.mark.parametrize("learner", RESTARTING)
def test_restarting_learners_ignore_the_state(learner, first):
    assert same(step(learner, first, DATA[1]), step(learner, None, DATA[1]))


def test_fine_tuning_looks_at_nothing_but_the_step(first):
    alone = replace(DATA[1], memory_before=None, memory_after=None, everything_seen=None)
    assert same(step("finetune", first, alone), step("finetune", first, DATA[1]))


def test_er_ace_replays_the_memory_that_holds_the_new_classes(first):
    whole = step("er-ace", first, DATA[1])
    assert same(step("er-ace", first, replace(DATA[1], memory_before=None)), whole)
    assert not same(step("er-ace", first, replace(DATA[1], memory_after=FIRST_MEMORY)), whole)


# Learning at all: made classes are easy.


def share_right(state, data, classes):
    images_TCHW, labels_T = made(classes, 10, "test")
    logits_TK = predict_seen(
        state, NETWORK, images_TCHW=images_TCHW, num_classes=K, train_settings=TRAIN, device=CPU
    )
    assert logits_TK.shape == (len(labels_T), K)
    return (logits_TK.argmax(dim=1) == labels_T).double().mean().item()


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_knows_new_classes_and_all_but_fine_tuning_remember_old_ones(learner):
    settings = SETTINGS.model_copy(
        update={"step_epochs": 30, "joint_epochs": 30, "replay_dsa_strategy": "none"}
    )
    train = TRAIN.model_copy(update={"epochs": 30, "eval_dsa_strategy": "none"})
    state = both_steps(learner, settings=settings, train_settings=train)
    assert share_right(state, DATA[1], STEPS[1]) > 0.8
    remembered = share_right(state, DATA[1], STEPS[0])
    assert remembered < 0.5 if learner == "finetune" else remembered > 0.8


# der++'s answers.


def test_answers_are_those_of_the_network_at_the_end_of_the_step(first):
    logits_MK = predict_seen(
        first, NETWORK, images_TCHW=FIRST_MEMORY[0], num_classes=K, train_settings=TRAIN, device=CPU
    ).numpy()
    np.testing.assert_allclose(first.logits[0], logits_MK[:4], atol=1e-5)
    np.testing.assert_allclose(first.logits[3], logits_MK[4:], atol=1e-5)


def test_old_answers_stay_and_shrink_with_their_class(first):
    after = step("der++", first, DATA[1])
    assert {c: len(a) for c, a in after.logits.items()} == {0: 2, 1: 2, 3: 2, 4: 2}
    for class_id in STEPS[0]:
        assert np.array_equal(after.logits[class_id], first.logits[class_id][:2])


def test_answers_are_recalled_by_class_and_place():
    known = {0: np.full((3, K), 0.5, np.float32), 3: np.arange(3 * K, dtype=np.float32).reshape(3, K)}
    logits_MK = recall_answers(known, torch.tensor([3, 0, 3]), num_classes=K)
    assert np.array_equal(logits_MK.numpy(), np.stack([known[3][0], known[0][0], known[3][1]]))


def test_recording_in_another_order_of_classes_gives_the_same_answers():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(C * H * W, K))
    rows = [4, 0, 5, 1, 6, 2, 7, 3]
    shuffled = FIRST_MEMORY[0][rows], FIRST_MEMORY[1][rows]
    plain, other = (
        record_answers(net, m, {}, dtype=torch.float32, device=CPU) for m in (FIRST_MEMORY, shuffled)
    )
    assert all(np.array_equal(plain[c], other[c]) for c in STEPS[0])


def test_a_memory_that_grew_is_refused(first):
    grown = joined(FIRST_MEMORY, made(STEPS[0], 1, "more"))
    with pytest.raises(ConfigError, match="answers for 4 images of class 0, but the memory holds 5"):
        step("der++", first, replace(DATA[1], memory_before=grown))


# Borders.


def test_state_survives_bytes_with_scalars_and_answers(first):
    again = LearnerState.from_bytes(first.to_bytes())
    assert again.step == 0
    assert same(again, first)
    assert any(array.shape == () for array in again.weights.values())
    assert {c: a.tolist() for c, a in again.logits.items()} == {
        c: a.tolist() for c, a in first.logits.items()
    }


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_damaged_bytes_are_refused(first, cut):
    with pytest.raises(ArtifactError, match="not a state written here"):
        LearnerState.from_bytes(first.to_bytes()[:cut])


def test_unknown_learner_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'icarl': unknown; known are gdumb, er, er-ace"):
        step("icarl", None, DATA[0])


def test_a_state_of_another_step_is_refused(first):
    with pytest.raises(ConfigError, match="received as state none, expected that after step 0"):
        step("er", None, DATA[1])
    with pytest.raises(ConfigError, match="received as state that after step 0, expected none"):
        step("er", first, DATA[0])


def test_a_state_of_another_network_is_refused(first):
    with pytest.raises(ConfigError, match="continue with the network"):
        step("er", first, DATA[1], network="convnet-w64-d1-batch-relu-avg")


@pytest.mark.parametrize(
    ("learner", "part"), [("gdumb", "memory_after"), ("joint", "everything_seen"), ("er", "current")]
)
def test_a_missing_part_is_named(learner, part):
    with pytest.raises(ConfigError, match=f"learner {learner} needs {part}, which is empty"):
        step(learner, None, replace(DATA[0], **{part: None}))


def test_images_of_classes_to_come_are_refused():
    with pytest.raises(DataError, match=r"current: holds images of class 0, expected classes \[1, 4\]"):
        replace(DATA[1], current=DATA[1].everything_seen)
    with pytest.raises(DataError, match="expected a step from 0"):
        replace(DATA[0], step_classes=STEPS[1])


def test_images_without_their_labels_are_refused():
    with pytest.raises(ShapeError, match="one label an image"):
        replace(DATA[0], memory_after=(FIRST_MEMORY[0], FIRST_MEMORY[1][:3]))


def test_a_diverged_training_is_an_error():
    settings = SETTINGS.model_copy(update={"lr_replay": 1e30})
    with pytest.raises(NotFiniteError, match="weights of finetune hold NaN"):
        step("finetune", None, DATA[0], settings=settings)


def test_answers_that_are_not_finite_are_an_error_that_names_the_step():
    settings = SETTINGS.model_copy(update={"lr_replay": 1e30})
    with pytest.raises(NotFiniteError, match=r"step 0: der\+\+: the network's outputs hold NaN or infinity"):
        step("der++", None, DATA[0], settings=settings)


def test_unset_settings_are_resolved_by_device_size_and_symbols():
    large = LearnerSettings().resolved(
        device_kind="cuda", step_images=10**4, seen_images=10**5, symbols=False
    )
    assert (large.step_epochs, large.joint_epochs, large.replay_dsa_strategy) == (50, 100, DEFAULT_DSA)
    small = LearnerSettings().resolved(device_kind="cpu", step_images=100, seen_images=999, symbols=True)
    assert small.replay_dsa_strategy == DSA_FOR_SYMBOLS
    assert small.step_epochs * 100 >= STEP_IMAGES_SHOWN > (small.step_epochs - 1) * 100
    assert small.joint_epochs * 999 >= JOINT_IMAGES_SHOWN > (small.joint_epochs - 1) * 999


def test_a_learner_does_not_mirror_images_of_which_nobody_said_what_they_show():
    settings = SETTINGS.model_copy(update={"replay_dsa_strategy": "auto"})
    with pytest.raises(ConfigError, match=r"--replay-dsa-strategy 'auto' mirrors .* pass symbols=True"):
        step("finetune", None, DATA[0], settings=settings)


def test_given_settings_are_left_alone():
    assert SETTINGS.resolved(device_kind="cuda", step_images=1, seen_images=1, symbols=None) == SETTINGS


def test_unknown_augmentation_is_named_with_its_flag():
    with pytest.raises(ConfigError, match="--replay-dsa-strategy 'mirror': unknown operation 'mirror'"):
        LearnerSettings(replay_dsa_strategy="mirror")
