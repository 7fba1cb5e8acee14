"""A user's function as a proxy: what it is given, what it may do, and what is said of one that does not fit."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.nas.own_proxy import own_digest, own_function, own_score
from apps.nas.proxies import Proxy
from apps.nas.space import load_space
from apps.nas.trial import ZERO_COST_BATCH, Images, Recipe, Unit, run_unit
from atom import nets
from atom.errors import ConfigError
from atom.settings import EvaluateSettings

PAGE = Path(__file__).parents[2] / "docs" / "nas.md"
SHAPE = {"channels": 2, "image_size": (8, 6), "num_classes": 3}
HEAD = "import math, random, sys\nimport numpy as np\nimport torch\n"


@pytest.fixture
def own(tmp_path):
    """Writes a file, a fresh one for each call, and gives the name of its function `score`."""
    number = iter(range(99))

    def write(body):
        path = tmp_path / f"own_{next(number)}.py"
        path.write_text(f"{HEAD}{body}\n")
        return f"{path}:score"

    return write


def scored(spec, seed=0):
    net = nets.build("convnet-w8-d1", **SHAPE)
    return own_score(spec, net, torch.ones(5, 2, 8, 6), torch.arange(5) % 3, seed=seed)


@pytest.mark.parametrize(
    ("value", "score"),
    [("3", 3.0), ("torch.tensor([0.5])", 0.5), ("np.float32(-2)", -2.0), ("-math.inf", -float("inf"))],
)
def test_it_may_return_any_kind_of_number(own, value, score):
    assert scored(own(f"def score(net, images, labels): return {value}")) == score


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("None", "returned NoneType, expected one number, the larger the better"),
        ("torch.ones(2)", "returned Tensor, expected one number"),
        ("math.nan", "returned nan, expected a finite number, or -inf for the worst"),
        ("math.inf", "returned inf, expected a finite number"),
    ],
)
def test_what_is_no_score_is_said(own, value, said):
    with pytest.raises(ConfigError, match=rf"^proxy .*own_0.py:score: {said}"):
        scored(own(f"def score(net, images, labels): return {value}"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def other(): pass", ".*own_0.py has no 'score'; name something defined there"),
        ("score = 7", "is int, not callable; expected a function"),
        (
            "def score(net, images): return 1",
            r"cannot be called as function\(net, images, labels\) \(too many positional",
        ),
        ("import absent_of_nobody", "cannot import .*No module named 'absent_of_nobody'"),
        ("sys.exit(3)", "cannot import .*SystemExit: 3"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused(own, body, said):
    spec = own(body)
    for ask in (own_function, own_digest):
        with pytest.raises(ConfigError, match=f"^proxy {re.escape(spec)}: ({said})"):
            ask(spec)


def test_an_exit_is_an_error_of_its_own(own):
    with pytest.raises(RuntimeError, match=r"it called exit\(0\)"):
        scored(own("def score(net, images, labels): sys.exit(0)"))


def test_random_numbers_follow_the_seed_and_leave_the_generators_alone(own):
    spec = own(
        "def score(net, images, labels): return torch.rand(1) + 10 * np.random.rand() + 100 * random.random()"
    )
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist()
    torch.manual_seed(5)
    np.random.seed(5)
    drawn = [torch.rand(1).item()], [np.random.rand()]
    values = [scored(spec, seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert (drawn[0] + [torch.rand(1).item()], drawn[1] + [np.random.rand()]) == expected


@pytest.mark.parametrize(
    "setting",
    ["torch.set_grad_enabled(False)", "torch.set_default_dtype(torch.float64)", "torch.set_num_threads(3)"],
)
def test_pytorchs_settings_are_put_back_whatever_it_does(own, setting):
    def settings():
        return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()

    before = settings()
    scored(own(f"def score(net, images, labels): {setting}; return 1"))
    with pytest.raises(ZeroDivisionError):
        scored(own(f"def score(net, images, labels): {setting}; 1 / 0"))
    assert settings() == before


def test_gradients_are_on_and_a_neighbour_of_the_file_is_found_when_it_runs(own, tmp_path):
    (tmp_path / "neighbour_of_own.py").write_text("factor = 2.0\n")
    spec = own(
        "def score(net, images, labels):\n"
        "    from neighbour_of_own import factor\n"
        "    net(images).sum().backward()\n"
        "    return factor * (net.training and all(p.grad is not None for p in net.parameters()))"
    )
    with torch.no_grad():
        assert scored(spec) == 2.0
    before = own_digest(spec)
    assert before == own_digest(spec)
    (tmp_path / "neighbour_of_own.py").write_text("factor = 3.0\n")
    assert own_digest(spec) != before


def test_a_unit_gives_it_fresh_weights_and_the_training_images_of_the_seed(own):
    spec = own(
        "seen = []\ndef score(net, images, labels):\n"
        "    seen.append((images.clone(), labels.clone(), next(net.parameters()).detach().clone()))\n"
        "    images.zero_(); labels.zero_(); torch.nn.init.zeros_(next(net.parameters()))\n"
        "    return len(images)"
    )
    space = load_space("small", **SHAPE)
    train = torch.randn(100, 2, 8, 6), torch.arange(100) % 3
    kept = train[0].clone()
    given = {
        "space": space,
        "small": {},
        "real": {"main": Images(train, (train[0][:0], train[1][:0]), (train[0][:0], train[1][:0]))},
        "recipe": Recipe(EvaluateSettings(epochs=1), whole_epochs=1, steps=1),
        "device": torch.device("cpu"),
    }
    proxy = Proxy("score", "own", "main", 0, source=spec)
    for seed in (0, 0, 1):
        found = run_unit(Unit(space.names[0], "score", seed), proxy, **given)
        assert (found.score, found.steps, found.test_accuracy) == (ZERO_COST_BATCH, 0, None)
    assert torch.equal(train[0], kept)
    first, again, other = nets.import_object(spec.replace(":score", ":seen"), what="it")
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    rows = {image.numpy().tobytes(): int(label) for image, label in zip(*train, strict=True)}
    assert [rows[image.numpy().tobytes()] for image in first[0]] == first[1].tolist()


def test_the_proxy_of_the_page_is_one(tmp_path):
    code = PAGE.read_text().partition("`my_proxy.py`:")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_proxy.py").write_text(code)
    assert scored(f"{tmp_path}/my_proxy.py:loss_drop") > 0
