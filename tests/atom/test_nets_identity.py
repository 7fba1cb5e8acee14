"""What a stored result of a user's network depends on: its sources, what they import, and the network they build."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from atom import nets
from atom.nets import identity, import_object, network_digest, sources_digest

SIZES = {"channels": 1, "image_size": (8, 8), "num_classes": 3}
NOTHING = hashlib.sha256(b"").hexdigest()[:16]
HEAD = """
import json
from pathlib import Path
from torch import nn

HERE = Path(__file__).parent
"""
LINEAR = """
def make(channels, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, num_classes))
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(folder, files):
    """Digest of net.py:make in a folder of its own, as another process would find it."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    before = set(sys.modules)
    found = sources_digest(import_object(f"{folder}/net.py:make", what="it"))
    for name in set(sys.modules) - before:
        del sys.modules[name]
    return found


@pytest.mark.parametrize(
    ("importing", "module"),
    [
        ("from blocks_of_test import WIDTH", "blocks_of_test.py"),
        ("import blocks_of_test as b\nWIDTH = b.WIDTH", "blocks_of_test.py"),
        ("def make(**sizes):\n    from blocks_of_test import WIDTH", "blocks_of_test.py"),
        ("from folder_of_test.blocks import WIDTH", "folder_of_test/blocks.py"),
        ("from folder_of_test import blocks\nWIDTH = blocks.WIDTH", "folder_of_test/blocks.py"),
    ],
)
def test_an_edit_of_what_the_file_imports_is_another_network(workdir, importing, module):
    files = {"net.py": f"{importing}\n{HEAD}{LINEAR}"}
    two, four, again = (
        sources(workdir / name, {**files, module: f"WIDTH = {width}"})
        for name, width in (("a", 2), ("b", 4), ("c", 2))
    )
    assert two != four
    assert two == again


def test_imports_are_followed_through_packages_and_relative_ones(workdir):
    files = {
        "net.py": f"from pack_of_test import WIDTH\n{HEAD}{LINEAR}",
        "pack_of_test/__init__.py": "from .inner import WIDTH",
        "pack_of_test/inner.py": "from . import numbers\nWIDTH = numbers.WIDTH",
    }
    two, four = (
        sources(workdir / name, {**files, "pack_of_test/numbers.py": f"WIDTH = {width}"})
        for name, width in (("a", 2), ("b", 4))
    )
    assert two != four


@pytest.mark.parametrize("module", ["train_of_test.py", "train_of_test/__init__.py"])
def test_what_is_imported_in_no_call_is_looked_for_and_not_run(workdir, module):
    files = {"net.py": f"WIDTH = 2\ndef fit():\n    from train_of_test import loop\n{HEAD}{LINEAR}"}
    runs = "from pathlib import Path\nPath('ran').touch()\nraise SystemExit(3)\n"
    one, other = (sources(workdir / folder, {**files, module: f"{runs}{folder} = 1"}) for folder in "ab")
    assert not (workdir / "ran").exists()
    assert one != other


def test_an_edit_within_packages_that_nobody_imported_counts(workdir):
    files = {"net.py": f"WIDTH = 2\ndef fit():\n    from outer_of_test.inner.loop import run\n{HEAD}{LINEAR}"}
    two, four = (
        sources(workdir / name, {**files, "outer_of_test/inner/loop.py": f"WIDTH = {width}"})
        for name, width in (("a", 2), ("b", 4))
    )
    assert two != four


@pytest.mark.parametrize("text", ["print 'of Python 2'", "a = '\0'"])
def test_a_file_that_is_no_python_counts_with_what_is_in_it(workdir, text):
    files = {"net.py": f"WIDTH = 2\ndef fit():\n    import old_of_test\n{HEAD}{LINEAR}"}
    one, other = (
        sources(workdir / folder, {**files, "old_of_test.py": f"{text}\n# {folder}"}) for folder in "ab"
    )
    assert one != other


def test_installed_packages_and_this_project_are_no_sources_of_the_users(workdir):
    text = f"import torch, numpy.linalg, yaml\nfrom atom.nets import build\nWIDTH = 2\n{HEAD}{LINEAR}"
    content = hashlib.sha256(text.encode()).hexdigest()
    assert sources(workdir / "a", {"net.py": text}) == hashlib.sha256(content.encode()).hexdigest()[:16]


def test_an_edit_of_a_file_that_the_builder_reads_is_another_network(workdir):
    body = HEAD + 'WIDTH = json.loads((HERE / "width.json").read_text())\n' + LINEAR
    found = []
    for folder, width in (("a", 2), ("b", 64), ("c", 2)):
        (workdir / folder).mkdir()
        (workdir / folder / "net.py").write_text(body)
        (workdir / folder / "width.json").write_text(json.dumps(width))
        found.append(identity(f"{folder}/net.py:make", **SIZES))
    assert found[0].startswith("net.py:make@")
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_the_identity_of_a_known_network_is_its_name():
    assert identity("convnet-w64", **SIZES) == "convnet-w64"


class Net(nn.Module):
    """One of everything that may change without another file or shape."""

    def __init__(self, *, slope=0.1, dropout=0.5, table=(1.0, 2.0), frozen=False, power=1):
        super().__init__()
        self.slope, self.power = slope, power
        self.drop, self.linear = nn.Dropout(dropout), nn.Linear(64, 3)
        self.register_buffer("table", torch.tensor(table))
        self.linear.weight.requires_grad_(not frozen)

    def blocks(self, images):
        one = images.pow(self.power)
        return [one], one.flatten(1)

    def forward(self, images):
        return nn.functional.leaky_relu(self.linear(self.drop(images.flatten(1))), self.slope)


def digest(**changes):
    net = nets.build_from(lambda **sizes: Net(**changes), **SIZES)
    return network_digest(net, 1, (8, 8))


@pytest.mark.parametrize(
    "change",
    [
        {"slope": 0.1001},
        {"dropout": 0.4},
        {"table": (1.0, 2.5)},
        {"table": (1.0, 2.0, 3.0)},
        {"frozen": True},
        {"power": 2},
    ],
)
def test_what_no_shape_shows_changes_the_digest_of_a_network(change):
    assert digest(**change) != digest()


def test_the_digest_of_a_network_depends_on_nothing_else():
    expected = digest()
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert digest() == expected
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_buffer_drawn_at_random_is_the_same_in_every_build():
    def make(**sizes):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        net.register_buffer("noise", torch.randn(4))
        return net

    one, two = (nets.build_from(make, **SIZES).noise for _ in range(2))
    assert torch.equal(one, two)


def digest_with(weight, *, others=None):
    """Of a layer whose first row is loaded and whose others are drawn, with other last bits on some processors."""

    def make(**sizes):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
        with torch.no_grad():
            net[1].weight[0] = weight
            net[1].weight[1:] *= others if others is not None else 1.0
        return net

    net, other = (nets.build_from(make, **SIZES, seed=seed) for seed in (0, 1))
    return network_digest(net, 1, (8, 8), other=other)


def test_the_last_bits_of_random_weights_do_not_change_the_digest():
    last_bits = 1 + 1e-7 * torch.tensor([[1.0, -1.0] * 32, [-1.0, 1.0] * 32])
    assert digest_with(0.5, others=last_bits) == digest_with(0.5)
    assert digest_with(0.5, others=1.5) != digest_with(0.5)


def test_every_bit_of_weights_that_are_not_random_counts():
    assert digest_with(0.5) != digest_with(0.5000001)


def test_another_kind_of_processor_does_not_change_the_identity_of_a_network(workdir):
    drawn = "net = nn.Sequential(nn.Flatten(), nn.Linear(64, 99), nn.Linear(99, 3))"
    text = f"from torch import nn\ndef make(**sizes):\n    {drawn}\n    nn.init.normal_(net[1].weight)\n    return net"
    (workdir / "net.py").write_text(text, encoding="utf-8")
    asks = f"from atom.nets import identity; print(identity('net.py:make', **{SIZES}))"
    told = [
        subprocess.run(
            [sys.executable, "-c", asks],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for capability in ("default", "avx2")
    ]
    assert told[0] == told[1]


def test_a_network_that_knows_no_float64_has_a_digest_of_its_answers_all_the_same():
    class Single(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.linear, self.scale = nn.Linear(64, 3), scale

        def forward(self, images):
            if images.dtype != torch.float32:
                raise TypeError("float32 only")
            return self.linear(images.flatten(1)) * self.scale

    one, two = (network_digest(Single(scale), 1, (8, 8)) for scale in (1.0, 1.5))
    assert one != two


CALLABLES = """
import functools

def plain(): pass

class Klass:
    def method(self): pass
    def __call__(self): pass

@functools.wraps(plain)
def wrapped(*args): return plain(*args)

@functools.cache
def cached(): pass

def closure():
    def inner(): pass
    return inner

lam = lambda: None
instance, bound, inner = Klass(), Klass().method, closure()
part, part_of_part = functools.partial(plain), functools.partial(functools.partial(plain, 1), 2)
part_of_class, part_of_instance = functools.partial(Klass), functools.partial(Klass())
"""
NAMES = ["plain", "Klass", "wrapped", "cached", "lam", "instance", "bound", "inner"]
NAMES += ["part", "part_of_part", "part_of_class", "part_of_instance"]


def test_every_kind_of_callable_has_the_digest_of_its_file(workdir):
    (workdir / "callables.py").write_text(CALLABLES, encoding="utf-8")
    module = nets.import_module("callables.py", what="it")
    assert sources_digest(module) != NOTHING
    for name in NAMES:
        assert sources_digest(getattr(module, name)) == sources_digest(module), name


@pytest.mark.parametrize("builtin", [max, dict, partial(max), partial(dict), [].append, functools.cache])
def test_what_has_no_file_of_the_users_has_the_digest_of_nothing(builtin):
    assert sources_digest(builtin) == NOTHING


def test_a_function_typed_at_a_prompt_has_a_digest_all_the_same():
    scope = {"__name__": "__nowhere__"}
    exec("def typed(): pass\nclass Typed: pass\n", scope)
    for name in ("typed", "Typed"):
        assert sources_digest(scope[name]) == NOTHING  # pyrefly: ignore
