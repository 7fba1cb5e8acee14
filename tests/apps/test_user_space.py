"""A user's own list of networks: what is taken, what is refused, and that workers build the same."""

import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from apps.nas.space import load_space, sample
from atom.errors import ConfigError
from atom.nets import build, count_multiply_adds, count_parameters, import_object

ROOT = Path(__file__).parents[2]
TINY = {"channels": 1, "image_size": (8, 8), "num_classes": 3}
HEAD = """
import torch
from functools import partial
from torch import nn

def linear(channels, image_size, num_classes, inner=4):
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, inner), nn.ReLU(),
                         nn.Linear(inner, num_classes))

def broken(channels, image_size, num_classes):
    raise ValueError("out of order")
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def user_space(folder, body, *, file="mine.py", name="networks"):
    (folder / file).write_text(HEAD + body, encoding="utf-8")
    return f"{file}:{name}"


def test_a_list_a_function_and_a_generator_function_of_the_same_networks_are_the_same_space(workdir):
    body = "networks = [('a', linear, 100), ['b', partial(linear, inner=8), None]]\n"
    body += "def listed():\n    return networks\n"
    body += "def generated():\n    yield from networks\n"
    spec = user_space(workdir, body)
    names = ("networks", "listed", "generated")
    spaces = [load_space(spec.replace(":networks", f":{name}"), **TINY) for name in names]
    for space in spaces:
        assert space.names == ("a", "b")
        assert [c.parameters for c in space.candidates] == [65 * 4 + 5 * 3, 65 * 8 + 9 * 3]
        # A user's own number is kept, None is counted.
        assert [c.multiply_adds for c in space.candidates] == [100, 64 * 8 + 8 * 3]
        assert all(c.axes == {} for c in space.candidates)


def test_a_builder_may_be_a_known_name(workdir):
    spec = user_space(workdir, "networks = [('mine', 'convnet-w8-d2', None), ('other', 'vit', 5)]\n")
    space = load_space(spec, **TINY)
    known = build("convnet-w8-d2", **TINY)
    assert space.candidates[0].parameters == count_parameters(known, 1, (8, 8))
    assert space.candidates[0].multiply_adds == count_multiply_adds(known, 1, (8, 8))
    ours = space.build("mine").state_dict()
    assert all(torch.equal(ours[name], value) for name, value in known.state_dict().items())


def test_a_builder_may_be_a_function_or_its_name_with_arguments(workdir, monkeypatch):
    (workdir / "elsewhere").mkdir()
    (workdir / "elsewhere" / "models.py").write_text("from beside import linear\n", encoding="utf-8")
    (workdir / "elsewhere" / "beside.py").write_text(HEAD, encoding="utf-8")
    body = "networks = [('a', (linear, {'inner': 6}), None), ('b', ('mine.py:linear', {'inner': 6}), 7),\n"
    body += "            ['c', ['elsewhere/models.py:linear', dict(inner=5)], None],\n"
    body += "            ('d', ('mine.py:linear', {}), None)]\n"
    space = load_space(user_space(workdir, body), **TINY)
    assert [c.parameters for c in space.candidates] == [65 * n + (n + 1) * 3 for n in (6, 6, 5, 4)]
    assert [c.multiply_adds for c in space.candidates] == [64 * 6 + 6 * 3, 7, 64 * 5 + 5 * 3, 64 * 4 + 4 * 3]
    assert all(space.is_own(name) for name in space.names)
    assert space.build("c")(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_the_source_of_a_function_that_is_named_counts(workdir):
    spaces = []
    for comment in ("", "# edited"):
        file = workdir / f"models{len(spaces)}.py"
        file.write_text(HEAD + comment, encoding="utf-8")
        body = f"networks = [('a', ('{file}:linear', {{'inner': 6}}), 1)]\n"
        spaces.append(identities(workdir, body, f"family_{len(spaces)}")[0])
    assert spaces[0] != spaces[1]


def test_a_wrapper_of_a_few_lines_takes_the_models_of_a_zoo(workdir, monkeypatch):
    """As docs/nas.md shows it for timm, which need not be installed."""
    zoo = types.ModuleType("timm")
    zoo.create_model = (
        lambda name, in_chans, num_classes: nn.Sequential(  # pyrefly: ignore
            nn.Conv2d(in_chans, int(name[3:]), 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes)
        )
    )
    monkeypatch.setitem(sys.modules, "timm", zoo)
    page = (ROOT / "docs" / "nas.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "timm" in block]
    (workdir / "zoo.py").write_text(
        re.sub(r'\("\w+", "\w+"\)', '("net4", "net8")', example), encoding="utf-8"
    )
    space = load_space("zoo.py:networks", **TINY)
    assert space.names == ("net4", "net8")
    assert [c.problem for c in space.candidates] == ["", ""]


def test_numbers_of_numpy_are_costs(workdir):
    body = "import numpy as np\nnetworks = [('a', linear, np.int64(7)), ('b', linear, np.float32(9.0))]\n"
    costs = [c.multiply_adds for c in load_space(user_space(workdir, body), **TINY).candidates]
    assert costs == [7, 9]
    assert all(type(cost) is int for cost in costs)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("networks = []", r"--space mine\.py:networks: is empty; list at least one"),
        ("networks = 3", r"gave no list of networks \(TypeError: 'int' object is not iterable\); expected"),
        ("def networks():\n    1 / 0", r"gave no list of networks \(ZeroDivisionError: division by zero\)"),
        ("def networks(size):\n    return []", r"gave no list of networks \(TypeError: networks\(\) missing"),
        ("networks = iter([('a', linear, 1)])", r"an iterator can be read only once"),
        (
            "networks = [('a', linear)]",
            r"entry 0 is \('a', <function .*expected \(name, builder, multiply-adds",
        ),
        ("networks = [('a', linear, 1), linear]", r"entry 1 is <function"),
        ("networks = {'a': linear}", r"entry 0 is 'a'"),
        ("networks = [(1, linear, 1)]", r"entry 0 is \(1, "),
        ("networks = [('', linear, 1)]", r"entry 0 is \('', "),
        ("networks = [('a', 5, 1)]", r"entry 0 is \('a', 5, 1\)"),
        ("networks = [('a', linear, -1)]", r"-1\); expected"),
        ("networks = [('a', linear, 0)]", r"0\); expected"),
        ("networks = [('a', linear, True)]", r"True\); expected"),
        ("networks = [('a', linear, '1e6')]", r"'1e6'\); expected"),
        ("networks = [('a', linear, float('nan'))]", r"nan\); expected"),
        ("networks = [('a', linear, float('inf'))]", r"inf\); expected"),
        ("networks = [('a', linear, 1), ('a', broken, 2)]", r"the name 'a' comes twice; give every network"),
        (
            "networks = [('a', ('linear', {}), 1)]",
            r"entry 0 .* or with arguments beside the sizes \('tiny', \('mo",
        ),
        ("networks = [('a', ('mine.py:linear', 5), 1)]", r"entry 0 is \('a', \('mine.py:linear', 5\), 1\)"),
        ("networks = [('a', (linear, {1: 2}), 1)]", r"entry 0 is"),
        ("networks = [('a', (linear, {'channels': 3}), 1)]", r"entry 0 is .* beside the sizes"),
        ("networks = [('a', nn.Linear(2, 2), 1)]", r"entry 0 is \('a', Linear\("),
        ("other = []", r"--space mine\.py:networks: mine\.py has no 'networks'"),
        (
            "import nothing_of_that_name",
            r"--space mine\.py:networks: cannot import mine\.py \(ModuleNotFound",
        ),
    ],
)
def test_a_list_that_is_none_is_refused(workdir, body, said):
    with pytest.raises(ConfigError, match=said):
        load_space(user_space(workdir, body + "\n"), **TINY)


def test_an_unknown_space_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="--space tiny: unknown; known are all, pooled, small, nasbench201, "
    ):
        load_space("tiny", **TINY)


@pytest.mark.parametrize(
    "entry",
    [
        "('bad', broken, 50)",
        "('bad', 'convnet-w8-d2-nonsense', 50)",
        "('bad', 'absent.py:make', 50)",
        "('bad', ('absent.py:make', {}), 50)",
        "('bad', ('mine.py:torch', {}), 50)",
        "('bad', ('mine.py:linear', {'outer': 3}), 50)",
        "('bad', lambda channels, image_size, num_classes: nn.Linear(3, 3), 50)",
        "('bad', lambda channels, image_size, num_classes: 3, 50)",
        "('bad', dict, 50)",
        "('bad', partial(max), 50)",
    ],
)
def test_a_network_that_cannot_be_built_stays_in_the_space_and_says_why_when_built(workdir, entry):
    space = load_space(user_space(workdir, f"networks = [('good', linear, None), {entry}]\n"), **TINY)
    good, bad = space.candidates
    assert good.parameters is not None
    assert (bad.name, bad.parameters, bad.multiply_adds) == ("bad", None, 50)
    assert (good.problem, "network" in bad.problem) == ("", True)
    with pytest.raises(ConfigError, match="network"):
        space.build("bad")


def test_the_cost_of_a_network_that_cannot_be_built_is_unknown(workdir):
    space = load_space(user_space(workdir, "networks = [('bad', broken, None)]\n"), **TINY)
    assert space.candidates[0].multiply_adds is None
    assert sample(space, 1, seed=0) == space
    with pytest.raises(ConfigError, match="network 'bad': the function failed with ValueError: out of order"):
        space.build("bad")


def test_a_list_that_lacks_a_network_is_said(workdir):
    space = load_space(user_space(workdir, "networks = [('a', linear, 1)]\n"), **TINY)
    with pytest.raises(ConfigError, match=r"no longer lists 'n0'; give the same networks at every call"):
        space.build("n0")


def test_a_list_function_is_called_once_a_process(workdir):
    body = "calls = []\ndef networks():\n    calls.append(1)\n    import torch\n"
    body += "    return [('a', linear, None), ('b', linear, None)]\n"
    spec = user_space(workdir, body)
    space = load_space(spec, **TINY)
    for name in (*space.names, *space.names):
        space.build(name)
    assert import_object(spec.replace(":networks", ":calls"), what="it") == [1]


def test_a_users_network_has_the_same_weights_every_time_and_leaves_the_generator_alone(workdir):
    space = load_space(user_space(workdir, "networks = [('a', linear, None)]\n"), **TINY)
    before = torch.get_rng_state()
    first, again = (space.build("a").state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)


def identities(folder, body, name, **shape):
    file = f"{name}.py"
    return [
        c.identity
        for c in load_space(f"{folder}/{user_space(folder, body, file=file)}", **{**TINY, **shape}).candidates
    ]


def test_an_identity_changes_with_the_network_and_with_what_the_list_imports(workdir):
    (workdir / "parts_of_test.py").write_text(HEAD, encoding="utf-8")
    body = "import parts_of_test\nnetworks = [('a', partial(parts_of_test.linear, inner={}), 1)]\n"
    # Results of inner=4 must not be taken for those of inner=5, though the code of both is in one file.
    first, second = (identities(workdir, body.format(inner), f"space_{inner}")[0] for inner in (4, 5))
    assert first != second
    (workdir / "parts_of_test.py").write_text(HEAD + "# edited", encoding="utf-8")
    assert identities(workdir, body.format(4), "space_6")[0] != first


def test_an_identity_does_not_depend_on_where_the_file_lies(workdir):
    (workdir / "deeper").mkdir()
    body = "networks = [('a', linear, 1)]\n"
    here, there = (identities(folder, body, "placed") for folder in (workdir, workdir / "deeper"))
    assert here == there


def test_identities_of_one_file_differ_by_network_and_those_of_known_names_follow_the_name(workdir):
    body = "networks = [('a', linear, 1), ('b', partial(linear, inner=5), 1), ('c', 'convnet-w8-d1', 1)]\n"
    a, b, c = identities(workdir, body, "several")
    assert a.partition("@")[2] != b.partition("@")[2]
    assert c == "c@convnet-w8-d1"


def test_a_pickled_space_builds_in_another_process_where_the_file_lies(workdir):
    spec = user_space(workdir, "networks = [('a', partial(linear, inner=6), None)]\n")
    space = load_space(spec, **TINY)
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    (workdir / "space.pickle").write_bytes(pickle.dumps(space))
    code = "import pickle, torch; space = pickle.load(open('space.pickle', 'rb'))\n"
    code += "print(sum(p.detach().double().sum() for p in space.build('a').parameters()).item())"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workdir,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    expected = sum(p.detach().double().sum() for p in space.build("a").parameters())
    assert float(finished.stdout) == pytest.approx(float(expected), abs=1e-12)


def test_a_network_of_a_user_may_need_no_parameters(workdir):
    body = "class Pool(nn.Module):\n    def __init__(self, channels, image_size, num_classes):\n"
    body += "        super().__init__()\n        self.num_classes = num_classes\n"
    body += "    def forward(self, images):\n"
    body += "        return images.flatten(1)[:, : self.num_classes]\n"
    space = load_space(user_space(workdir, body + "networks = [('pool', Pool, 3)]\n"), **TINY)
    assert space.candidates[0].parameters == 0
    assert isinstance(space.build("pool"), nn.Module)
