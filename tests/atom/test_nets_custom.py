"""A user's own network: the printed example runs, and what does not fit is said."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from atom.errors import ConfigError
from atom.nets import build, build_with, count_multiply_adds, import_object, require_blocks

PAGE = Path(__file__).parents[2] / "docs" / "own-network.md"
SIZES = {"channels": 1, "image_size": (8, 8), "num_classes": 10}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def write(folder, body):
    (folder / "net.py").write_text(f"import torch\nfrom torch import nn\n{body}", encoding="utf-8")
    return "net.py:make"


def test_the_printed_example_runs_as_printed(workdir, capsys):
    network, use = code_blocks()
    (workdir / "my_net.py").write_text(network, encoding="utf-8")
    exec(compile(use, "docs/own-network.md", "exec"), {})
    assert "torch.Size([4, 10])" in capsys.readouterr().out


def test_the_printed_network_can_distil_and_be_counted(workdir):
    (workdir / "example_net.py").write_text(code_blocks()[0], encoding="utf-8")
    for name in ("example_net.py:my_net", "example_net:my_net", "example_net:MyNet"):
        net = require_blocks(build(name, **SIZES), name)
        activations, embedding = net.blocks(torch.randn(2, 1, 8, 8))
        assert [tuple(each.shape) for each in activations] == [(2, 32, 8, 8), (2, 32, 8, 8)]
        assert embedding.shape == (2, 512)
        assert net.mixes_batch is False
        assert count_multiply_adds(net, 1, (8, 8)) == 9 * 32 * 64 + 9 * 32 * 32 * 64 + 5120


def test_batchnorm_in_a_users_network_is_noticed(workdir):
    body = "def make(channels, image_size, num_classes):\n"
    body += "    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, num_classes))\n"
    assert build(write(workdir, body), **SIZES).mixes_batch is True


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent_module_of_nobody:make", r"cannot import absent_module_of_nobody \(ModuleNotFoundError"),
        ("absent.py:make", r"cannot import absent.py \(FileNotFoundError: no such file"),
        ("math:", r"expected module:name"),
        (":make", r"expected module:name"),
        ("math:nothing", r"math has no 'nothing'"),
        ("math:pi", r"'pi' is float, not callable"),
    ],
)
def test_functions_that_cannot_be_found_are_said(workdir, name, said):
    with pytest.raises(ConfigError, match=said):
        build(name, **SIZES)


HEAD = "def make(channels, image_size, num_classes):\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0\n", r"cannot import net.py \(ZeroDivisionError"),
        (
            "def make(channels):\n    return nn.Flatten()\n",
            r"failed with TypeError: .*it is called as function",
        ),
        (HEAD + "    return 3\n", r"returned int, expected a torch.nn.Module"),
        (
            HEAD + "    return nn.Linear(3, 3)\n",
            r"failed on images of shape \(2, 1, 8, 8\) with RuntimeError",
        ),
        (
            HEAD + "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n",
            r"gave a tensor of shape \(2, 3\), expected logits of shape \(2, 10\)",
        ),
        (
            HEAD
            + "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
            + "    net.blocks = lambda images: [images]\n    return net\n",
            r"blocks\(images\) gave a list of \(a tensor of shape \(2, 1, 8, 8\)\), expected",
        ),
    ],
    ids=["import", "signature", "type", "forward", "logits", "blocks"],
)
def test_networks_that_do_not_fit_are_said(workdir, body, said):
    with pytest.raises(ConfigError, match=said):
        build(write(workdir, body), **SIZES)


def test_a_network_without_blocks_evaluates_but_is_refused_for_distillation(workdir):
    name = write(workdir, HEAD + "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n")
    net = build(name, **SIZES)
    assert isinstance(net, nn.Module)
    with pytest.raises(ConfigError, match=r"Sequential has no method blocks\(images\)"):
        require_blocks(net, name)


def test_building_a_users_network_leaves_torch_generator_alone(workdir):
    name = write(workdir, HEAD + "    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))\n")
    state = torch.random.get_rng_state()
    assert build(name, **SIZES).training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_function_at_hand_builds_as_one_by_name(workdir):
    def make(channels, image_size, num_classes):
        assert (channels, image_size, num_classes) == (1, (8, 8), 10)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    assert isinstance(build_with(make, "mine", **SIZES), nn.Sequential)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda **sizes: 1 / 0, r"network 'mine': the function failed with ZeroDivisionError"),
        (lambda channels: nn.Flatten(), r"network 'mine': the function failed with TypeError"),
        (lambda **sizes: "net", r"network 'mine': the function returned str, expected a torch\.nn\.Module"),
        (
            lambda **sizes: nn.Flatten(),
            r"network 'mine': .* gave a tensor of shape \(2, 64\), expected logits",
        ),
    ],
)
def test_a_function_at_hand_that_does_not_fit_is_said_by_its_name(function, said):
    with pytest.raises(ConfigError, match=said):
        build_with(function, "mine", **SIZES)


def test_any_object_of_a_file_or_a_module_is_imported(workdir):
    (workdir / "things.py").write_text("number, nothing = 7, None\n", encoding="utf-8")
    assert import_object("things.py:number", what="it") == 7
    assert import_object(f"{workdir}/things.py:number", what="it") == 7
    # An object that is there and None is not one that is missing.
    assert import_object("things.py:nothing", what="it") is None
    assert import_object("math:pi", what="it") == math.pi


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("things", "expected module:name or path/to/file.py:name"),
        (":number", "expected module:name"),
        ("things.py:", "expected module:name"),
        ("things.py:number", r"cannot import things\.py \(FileNotFoundError: no such file: things\.py\)"),
        ("math:tau_of_nobody", "math has no 'tau_of_nobody'; name something defined there"),
    ],
)
def test_an_object_that_cannot_be_imported_is_said_in_the_words_of_the_caller(workdir, name, said):
    with pytest.raises(ConfigError, match=f"^--space here: {said}"):
        import_object(name, what="--space here")


def test_importing_leaves_the_import_path_as_it_was(workdir):
    (workdir / "harmless.py").write_text("thing = 1\n", encoding="utf-8")
    before = list(sys.path)
    import_object("harmless.py:thing", what="it")
    with pytest.raises(ConfigError):
        import_object("absent_module_of_nobody:thing", what="it")
    assert sys.path == before


@pytest.mark.parametrize("body", ["sys.exit(0)", HEAD + "    sys.exit(0)", HEAD + "    return Quits()"])
def test_code_that_wants_to_end_the_process_is_a_network_that_fails(workdir, body):
    body = (
        f"import sys\nclass Quits(nn.Module):\n    def forward(self, images):\n        sys.exit(0)\n{body}\n"
    )
    with pytest.raises(ConfigError, match=r"import net\.py \(SystemExit|called exit\(0\)|with SystemExit"):
        build(write(workdir, body), **SIZES)


def test_a_file_finds_its_neighbours_when_it_is_imported_and_when_it_builds(workdir):
    (workdir / "part").mkdir()
    for name in ("neighbour_now", "neighbour_later"):
        (workdir / "part" / f"{name}.py").write_text("WIDTH = 64\n", encoding="utf-8")
    body = "import neighbour_now\n" + HEAD + "    import neighbour_later\n"
    body += "    return nn.Sequential(nn.Flatten(), nn.Linear(neighbour_later.WIDTH, num_classes))\n"
    write(workdir / "part", body)
    before = list(sys.path)
    assert isinstance(build("part/net.py:make", **SIZES), nn.Module)
    assert sys.path == before
