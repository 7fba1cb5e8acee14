"""A user's own network: the printed example runs, and what does not fit is said."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from atom.errors import ConfigError
from atom.nets import build, count_multiply_adds, require_blocks

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
        ("math:", r"expected module:function"),
        (":make", r"expected module:function"),
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
