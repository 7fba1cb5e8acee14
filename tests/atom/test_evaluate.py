"""Training on a small set and testing on others: what is learned, what decides it, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import atom.evaluate as evaluation
from atom import nets
from atom.errors import ConfigError, NotFiniteError, ShapeError
from atom.evaluate import evaluate
from atom.pixels import Pixels
from atom.preprocess import Preprocess
from atom.scores import Scores
from atom.settings import EvaluateSettings
from atom.streams import stream
from atom.train import accuracy, predict, train_network

CPU = torch.device("cpu")
CHANNELS, HEIGHT, WIDTH, CLASSES = 2, 8, 6, 3
SMALL = "convnet-w32-d1"
FAST = EvaluateSettings(epochs=12, lr_net=0.05, batch_train=8, eval_precision="float32")


def toy_set(count: int, purpose: str = "toy") -> tuple[np.ndarray, np.ndarray]:
    """Classes that differ by where the image is bright: a network can tell all of them apart."""
    rng = stream(0, f"test/evaluate/{purpose}")
    labels = np.arange(count) % CLASSES
    images = 0.3 * rng.standard_normal((count, CHANNELS, HEIGHT, WIDTH), dtype=np.float32)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 2 * label : 2 * label + 2] += 3.0
    return images, labels


def run_evaluate(seeds=(0,), settings=FAST, network=SMALL, train=None, test=None, **more):
    images, labels = train or toy_set(12)
    test_images, test_labels = test or toy_set(50, "test")
    return evaluate(
        images,
        labels,
        test_images=test_images,
        test_labels=test_labels,
        network=network,
        num_classes=CLASSES,
        seeds=seeds,
        settings=settings,
        symbols=False,
        device=CPU,
        threads=1,
        **more,
    )


def noise_set(purpose: str) -> tuple[np.ndarray, np.ndarray]:
    rng = stream(1, f"test/evaluate/{purpose}")
    images = rng.standard_normal((200, CHANNELS, HEIGHT, WIDTH), dtype=np.float32)
    return images, rng.integers(CLASSES, size=200)


def test_answers_are_scored_in_the_same_test():
    test = noise_set("scored")
    result = run_evaluate(seeds=(0, 1), test=test, network=f"{SMALL}-batch", statistics_images=test[0])
    assert result.with_real_statistics is not None
    assert result.scores_with_real_statistics is not None
    assert len(result.scores) == len(result.scores_with_real_statistics) == 2
    alone = run_evaluate(seeds=(1,), test=test, network=f"{SMALL}-batch")
    assert alone.scores == result.scores[1:]
    assert alone.scores_with_real_statistics is None
    sizes = np.bincount(test[1])
    for percent, one in zip(result.accuracies, result.scores, strict=True):
        # As far apart as the sizes of the classes are.
        assert abs(one.balanced_accuracy - percent) < 100 * (sizes.max() / sizes.min() - 1)


def test_separable_classes_are_learned_completely():
    without_crops = FAST.model_copy(update={"eval_dsa_strategy": "color_cutout"})
    result = run_evaluate(settings=without_crops.model_copy(update={"epochs": 30}))
    assert result.accuracies == (100.0,)
    assert result.scores == (Scores(100.0, 1.0, 0.0),)
    assert result.std is None, "one training has no spread"
    assert len(result.train_seconds) == len(result.test_seconds) == 1


def test_a_seed_gives_the_same_accuracy_whatever_other_seeds_run_before_it():
    test = noise_set("test")
    together = run_evaluate(seeds=(3, 1, 2), test=test)
    alone = [run_evaluate(seeds=(seed,), test=test).accuracies[0] for seed in (3, 1, 2)]
    assert list(together.accuracies) == alone
    assert len(set(alone)) > 1
    assert together.mean == pytest.approx(np.mean(alone))
    assert together.std == pytest.approx(np.std(alone, ddof=1))


def test_global_generators_neither_decide_the_result_nor_move():
    test = noise_set("test")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = run_evaluate(test=test)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert run_evaluate(test=test).accuracies == first.accuracies


def test_training_equals_sgd_written_by_hand():
    settings = EvaluateSettings(
        epochs=5, lr_net=0.1, momentum_net=0.8, weight_decay=0.01, eval_dsa_strategy="none"
    ).model_copy(update={"eval_precision": "float32"})
    images, labels = (torch.from_numpy(array) for array in toy_set(12))
    net, by_hand = (small_net(), small_net())
    train_network(net, images, labels, settings=settings, seed=0, symbols=False)
    parameters = list(by_hand.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for rate in (0.1, 0.1, 0.1, 0.01, 0.01):
        loss = nn.functional.cross_entropy(by_hand(images), labels)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient, speed in zip(parameters, gradients, velocity, strict=True):
                speed.mul_(0.8).add_(gradient + 0.01 * parameter)
                parameter -= rate * speed
    for trained, expected in zip(net.parameters(), parameters, strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-3, atol=1e-5)


def small_net() -> nn.Module:
    return nets.build(SMALL, channels=CHANNELS, image_size=(HEIGHT, WIDTH), num_classes=CLASSES)


def test_one_hot_soft_labels_train_like_hard_labels():
    images, labels = (torch.from_numpy(array) for array in toy_set(12))
    settings = FAST.model_copy(update={"epochs": 2})
    hard, soft = (small_net(), small_net())
    train_network(hard, images, labels, settings=settings, seed=0, symbols=False)
    train_network(soft, images, torch.eye(CLASSES)[labels], settings=settings, seed=0, symbols=False)
    for one, other in zip(hard.parameters(), soft.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    result = run_evaluate(soft_labels=np.eye(CLASSES, dtype=np.float32)[labels.numpy()])
    assert result.accuracies == run_evaluate().accuracies
    assert run_evaluate(train=(images, torch.eye(CLASSES)[labels])).accuracies == result.accuracies


@pytest.mark.parametrize("norm", ["", "-batch"])
def test_logits_do_not_depend_on_the_size_of_test_batches(norm):
    net = nets.build(SMALL + norm, channels=CHANNELS, image_size=(HEIGHT, WIDTH), num_classes=CLASSES)
    images, labels = (torch.from_numpy(array) for array in toy_set(11))
    whole = predict(net, images, batch=11)
    assert whole.shape == (11, CLASSES)
    torch.testing.assert_close(predict(net, images, batch=4), whole)
    share = (whole.argmax(1) == labels).float().mean().item()
    assert accuracy(net, images, labels) == pytest.approx(100 * share)


def test_test_images_are_not_augmented_and_read_once():
    images_read = []
    net = small_net()
    images = torch.from_numpy(toy_set(9)[0])

    def forward(net, batch):
        images_read.append(batch)
        return net(batch)

    predict(net, images, batch=3, forward=forward)
    assert torch.equal(torch.cat(images_read), images)


def test_pixels_to_test_on_give_the_bits_of_preprocessed_images():
    pixels = stream(2, "test/evaluate/pixels").integers(256, size=(250, CHANNELS, HEIGHT, WIDTH))
    pixels, labels = pixels.astype(np.uint8), np.arange(250) % CLASSES
    preprocess = Preprocess.fit(pixels, zca=False)
    stored, white = Pixels(pixels, preprocess), preprocess.apply(pixels)
    assert torch.equal(predict(small_net(), stored), predict(small_net(), white))
    found = [
        run_evaluate(
            train=(images[:40], labels[:40]),
            test=(images, labels),
            seeds=(0, 1),
            network=f"{SMALL}-batch",
            statistics_images=white[:40],
        )
        for images in (stored, white)
    ]
    assert found[0].scores == found[1].scores
    assert found[0].scores_with_real_statistics == found[1].scores_with_real_statistics


def test_a_training_on_pixels_has_the_bits_of_one_on_preprocessed_images():
    pixels = stream(3, "test/evaluate/pixels").integers(256, size=(50, CHANNELS, HEIGHT, WIDTH))
    pixels, labels = pixels.astype(np.uint8), torch.arange(50) % CLASSES
    preprocess = Preprocess.fit(pixels, zca=False)
    one, other = small_net(), small_net()
    for net, images in ((one, Pixels(pixels, preprocess)), (other, preprocess.apply(pixels))):
        train_network(net, images, labels, settings=FAST, seed=0, symbols=False)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_bfloat16_trains_too():
    bfloat16 = FAST.model_copy(
        update={"epochs": 60, "eval_precision": "bfloat16", "eval_dsa_strategy": "none"}
    )
    assert run_evaluate(settings=bfloat16).accuracies == (100.0,)


def test_a_training_that_diverges_is_an_error_and_no_accuracy():
    hopeless = FAST.model_copy(update={"lr_net": 1e6})
    with pytest.raises(NotFiniteError, match=r"-nonorm.*NaN or infinity for 50 of 50 images.*lower the step"):
        run_evaluate(seeds=(0, 1), settings=hopeless, network="convnet-w8-d2-nonorm")


def test_a_training_that_diverges_leaves_the_others_their_accuracies(monkeypatch):
    alone = run_evaluate(seeds=(3, 1))

    def break_the_second(net, *arguments, seed, **options):
        train_network(net, *arguments, seed=seed, **options)
        if seed == 2:
            next(net.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(evaluation, "train_network", break_the_second)
    result = run_evaluate(seeds=(3, 2, 1))
    assert (result.seeds, result.diverged) == ((3, 1), (2,))
    assert result.accuracies == alone.accuracies


def test_one_answer_that_is_not_finite_spoils_an_accuracy():
    images_TCHW = torch.zeros(4, 3, 1, 1)
    images_TCHW[2, 1] = torch.inf
    with pytest.raises(NotFiniteError, match="for 1 of 4 images"):
        accuracy(nn.Flatten(), images_TCHW, torch.zeros(4, dtype=torch.int64))


@pytest.mark.slow
def test_compiled_and_eager_learn_the_same_and_seeds_share_the_compilation(monkeypatch):
    settings = FAST.model_copy(update={"epochs": 60, "eval_dsa_strategy": "none"})
    eager = run_evaluate(seeds=(0, 1), settings=settings)
    monkeypatch.setattr(evaluation, "COMPILE_WORTH_FLOP", 0.0)
    torch._dynamo.utils.counters.clear()
    compiled = run_evaluate(seeds=(0, 1), settings=settings)
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled.compiled
    assert not eager.compiled
    assert compiled.accuracies == eager.accuracies == (100.0, 100.0)
    # Training batches of 6, since 12 images come in batches of at most 8, and the test batch.
    assert frames == 2


def test_arrays_that_do_not_fit_are_refused():
    images, labels = toy_set(12)
    with pytest.raises(ShapeError, match=r"training images are \(2, 8, 5\) and test images \(2, 8, 6\)"):
        run_evaluate(train=(images[..., :5], labels))
    with pytest.raises(ShapeError, match=r"test images \(12, 2, 8, 6\) with labels \(11,\)"):
        run_evaluate(test=(images, labels[:11]))
    with pytest.raises(ShapeError, match=r"soft_labels are \(12, 2\); expected \[N, K\] = \(12, 3\)"):
        run_evaluate(soft_labels=np.ones((12, 2), dtype=np.float32))


def test_values_out_of_range_are_refused():
    images, labels = toy_set(12)
    broken = images.copy()
    broken[7, 1, 0, 0] = np.nan
    with pytest.raises(ConfigError, match="training image 7 holds NaN or infinity"):
        run_evaluate(train=(broken, labels))
    with pytest.raises(ConfigError, match="test labels run from 1 to 3; expected 0 to 2"):
        run_evaluate(test=(images, labels + 1))
    with pytest.raises(ConfigError, match=r"training labels are torch\.float64; expected integers"):
        run_evaluate(train=(images, labels.astype(np.float64)))
    with pytest.raises(ConfigError, match="unknown"):
        run_evaluate(network="convnett")


def test_read_only_arrays_are_taken_without_a_warning(recwarn):
    images, labels = toy_set(12)
    images.setflags(write=False)
    run_evaluate(train=(images, labels), settings=FAST.model_copy(update={"epochs": 1}))
    assert not [warning for warning in recwarn if "writ" in str(warning.message)]
