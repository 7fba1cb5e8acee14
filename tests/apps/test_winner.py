"""A delivered network: what was written is what is loaded, and what is damaged is refused in one sentence."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apps.nas.space import Space
from apps.nas.winner import CONFIG, MODEL, PREPROCESS, README, load_winner, model_bytes, winner_files
from atom.errors import ArtifactError, ConfigError
from atom.nets import fill_weights
from atom.preprocess import Preprocess
from atom.streams import stream

C, H, W, K = 2, 8, 12, 3
NETWORK = "convnet-w8-d1-batch"
CLASSES = ["cat", "dog", "naïve ü"]
SPREAD = {"mean": 81.5, "std": 0.5, "n": 3, "delivered": 82.0}

OWN_SPACE = """
from torch import nn


def tiny(*, channels, image_size, num_classes):
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


networks = [("tiny", tiny, None)]
"""


def config(**changes: Any) -> dict[str, Any]:
    return {
        "network": NETWORK,
        "space": "small",
        "channels": C,
        "image_size": [H, W],
        "num_classes": K,
        "class_names": CLASSES,
        "seed": 1,
        "validation_accuracy": SPREAD,
        "test_accuracy": SPREAD,
        **changes,
    }


def pixels(number: int = 5) -> np.ndarray:
    return stream(0, "test/pixels").integers(256, size=(number, C, H, W)).astype(np.uint8)


def trained(space: str = "small", network: str = NETWORK) -> nn.Module:
    """Weights that `build` does not give, running statistics of BatchNorm that are not the first ones."""
    net = Space(space, (), C, (H, W), K).build(network).to(memory_format=torch.channels_last)
    fill_weights(net, stream(7, "test/weights"))
    net.train()
    with torch.no_grad():
        net(torch.from_numpy(pixels(20)).float() / 255)
    return net.eval()


def deliver(folder: Path, net: nn.Module | None = None, **changes: Any) -> tuple[nn.Module, Preprocess]:
    net = trained() if net is None else net
    preprocess = Preprocess.fit(pixels(40), zca=True)
    asked = config(**changes)
    model = model_bytes(net, network=asked["network"], seed=asked["seed"])
    files = winner_files(asked, model, preprocess=preprocess, title="Pets <b>")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return net, preprocess


def rewrite_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps({**content, **changes}))


def code_of(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / README).read_text(encoding="utf-8"), flags=re.S)


def run_code(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "README", "exec"), names)
    return names


def test_loaded_network_gives_the_very_logits_of_the_saved_one(tmp_path: Path) -> None:
    net, preprocess = deliver(tmp_path)
    loaded, own, described = load_winner(tmp_path)
    assert not loaded.training
    plain = net.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        expected_NK = plain(preprocess.apply(pixels()))
        assert torch.equal(loaded(own.apply(pixels())), expected_NK)
    assert described["class_names"] == CLASSES
    assert described["image_size"] == [H, W]
    assert described["test_accuracy"] == SPREAD


def test_buffers_are_delivered_too(tmp_path: Path) -> None:
    net, _ = deliver(tmp_path)
    loaded, _, _ = load_winner(str(tmp_path))
    saved, found = net.state_dict(), loaded.state_dict()
    assert any("running_mean" in name for name in saved)
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    assert {t.dtype for t in found.values() if t.is_floating_point()} == {torch.float32}


def test_same_weights_give_the_same_bytes() -> None:
    assert len({model_bytes(trained(), network=NETWORK, seed=1) for _ in range(2)}) == 1


def test_tensor_file_alone_says_which_network_and_seed_it_holds(tmp_path: Path) -> None:
    from safetensors import safe_open

    deliver(tmp_path)
    with safe_open(tmp_path / MODEL, framework="pt") as opened:
        header = json.loads(opened.metadata()["atom"])
    assert (header["network"], header["seed"]) == (NETWORK, 1)


def test_code_in_the_readme_runs_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, preprocess = deliver(tmp_path)
    assert str(tmp_path) not in (tmp_path / README).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = code_of(tmp_path)
    assert len(blocks) == 2
    blank_NCHW = torch.zeros(5, C, H, W, dtype=torch.uint8)
    with torch.no_grad():
        expected_NK = net.to(memory_format=torch.contiguous_format)(preprocess.apply(blank_NCHW))
    for block in blocks:
        assert torch.equal(run_code(block)["logits"], expected_NK)
        printed = capsys.readouterr().out
        assert any(name in printed for name in CLASSES)


def test_readme_of_a_network_of_ones_own_rebuilds_it_from_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_space.py").write_text(OWN_SPACE)
    winner = tmp_path / "runs" / "winner"
    net, preprocess = deliver(
        winner, trained("own_space.py:networks", "tiny"), network="tiny", space="own_space.py:networks"
    )
    loaded, _, _ = load_winner(winner, trust_code=True)
    blank_NCHW = torch.zeros(5, C, H, W, dtype=torch.uint8)
    with torch.no_grad():
        expected_NK = net(preprocess.apply(blank_NCHW))
        assert torch.equal(loaded(preprocess.apply(blank_NCHW)), expected_NK)
    assert "where `own_space.py:networks` can be imported" in (winner / README).read_text(encoding="utf-8")
    for block in code_of(winner):
        assert torch.equal(run_code(block.replace('"."', '"runs/winner"'))["logits"], expected_NK)


def test_readme_states_spread_and_number_and_escapes_the_title(tmp_path: Path) -> None:
    deliver(tmp_path)
    text = (tmp_path / README).read_text(encoding="utf-8")
    assert "81.50 ± 0.50" in text
    assert "n=3" in text
    assert "Pets &lt;b&gt;" in text


def test_spread_of_one_training_is_not_made_up(tmp_path: Path) -> None:
    once = {"mean": 81.5, "std": None, "n": 1, "delivered": 81.5}
    deliver(tmp_path, test_accuracy=once)
    assert "| test accuracy, %, n=1 | 81.50 |" in (tmp_path / README).read_text(encoding="utf-8")
    assert load_winner(tmp_path)[2]["test_accuracy"] == once


@pytest.mark.parametrize("name", [CONFIG, MODEL, PREPROCESS])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    deliver(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)} is missing, expected .*; check the path"):
        load_winner(tmp_path)


@pytest.mark.parametrize("name", [MODEL, PREPROCESS])
@pytest.mark.parametrize("damage", ["short", "bit", "empty"])
def test_damaged_tensors_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    deliver(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes({"short": content[:-9], "bit": content, "empty": b""}[damage])
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)}: another content, expected .*; copy"):
        load_winner(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_description_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    deliver(tmp_path)
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"winner\.json is not JSON .*; copy"):
        load_winner(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, expected 1; install a newer version"),
        ({"network": 3}, "network: Input should be a valid string, received 3"),
        ({"image_size": [8]}, "image_size: List should have at least 2 items"),
        ({"channels": 0}, "channels: Input should be greater than or equal to 1, received 0"),
        ({"num_classes": 4}, "3 class names, expected 4"),
        ({"sha256": {}}, r"digests of \[\], expected of"),
        ({"test_accuracy": {"mean": 1.0}}, r"test_accuracy\.\w+: Field required"),
    ],
)
def test_wrong_description_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    deliver(tmp_path)
    rewrite_config(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_winner(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    deliver(tmp_path)
    weights = load_file(tmp_path / MODEL)
    lost = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / MODEL)
    digests = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (MODEL, PREPROCESS)
    }
    rewrite_config(tmp_path, sha256=digests)
    with pytest.raises(
        ArtifactError, match=rf"does not fit {NETWORK!r} .*{re.escape(lost)}.*; bring its source"
    ):
        load_winner(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    deliver(tmp_path)
    rewrite_config(tmp_path, network="convnet-w16-d1-batch")
    with pytest.raises(ArtifactError, match="does not fit 'convnet-w16-d1-batch'"):
        load_winner(tmp_path)


def test_network_that_left_its_space_is_refused(tmp_path: Path) -> None:
    (tmp_path / "left_space.py").write_text(OWN_SPACE)
    space = f"{tmp_path / 'left_space.py'}:networks"
    deliver(tmp_path, trained(space, "tiny"), network="tiny", space=space)
    rewrite_config(tmp_path, network="gone")
    with pytest.raises(ConfigError, match=r"left_space\.py:networks: no longer lists 'gone'"):
        load_winner(tmp_path, trust_code=True)


def test_space_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    deliver(tmp_path)
    rewrite_config(tmp_path, space="nowhere_at_all:networks")
    with pytest.raises(ConfigError, match="cannot import nowhere_at_all"):
        load_winner(tmp_path, trust_code=True)


@pytest.mark.parametrize("field", ["space", "network"])
def test_code_that_a_directory_names_runs_only_where_it_is_trusted(tmp_path: Path, field: str) -> None:
    deliver(tmp_path)
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
    )
    rewrite_config(tmp_path, **{field: f"{tmp_path}/evil.py:networks"})
    with pytest.raises(ConfigError, match=r"winner\.json: .*evil\.py:networks', .*; read .* trust_code=True"):
        load_winner(tmp_path)
    assert not (tmp_path / "evil.ran").exists()
