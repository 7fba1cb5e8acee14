"""A place that --experts names: refused before Ray starts where it holds nothing for the run, or something broken."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from tiny_digits import NETWORK

from atom import data
from atom.data import RealData
from atom.errors import AtomError, ConfigError, StoreError
from atom.methods.experts import Expert, Recipe
from pipelines.output.expert_files import ExpertFiles
from pipelines.output.expert_place import check_place, experts_place
from pipelines.output.store import Store

EXPERT = Expert(3, 2, Recipe(NETWORK, seed=0, rate=0.1, batch=8))
OTHER_RECIPE = replace(EXPERT, recipe=replace(EXPERT.recipe, rate=0.2))
OTHER_NETWORK = replace(EXPERT, recipe=replace(EXPERT.recipe, network="convnet-w8-d1"))
CLASSES = tuple(range(10))


@pytest.fixture(scope="module")
def real() -> RealData:
    return data.load("digits", data_dir=Path("unused"))


def trained(folder: Path, real: RealData, expert: Expert) -> Path:
    """An expert on disk, as a run would leave it; its file."""
    files = ExpertFiles(Store.open(folder), real, preprocess="p", device="cpu")
    files.save(expert, CLASSES, {"epochs": np.zeros((2, 3), dtype=np.float32)})
    return folder / files.name(expert, CLASSES)


def check(folder: Path, real: RealData, *asked: Expert) -> None:
    check_place(Store.open(folder, flag="--experts"), asked or (EXPERT,), real)


def test_an_empty_place_and_one_of_other_recipes_are_fine(tmp_path: Path, real: RealData) -> None:
    check(tmp_path / "new", real)
    trained(tmp_path, real, OTHER_RECIPE)
    trained(tmp_path, real.hold_out(0.2), EXPERT)
    (tmp_path / "notes.txt").touch()
    check(tmp_path, real)


def test_a_place_of_other_images_is_refused(tmp_path: Path, real: RealData) -> None:
    half = real.hold_out(0.5)
    trained(tmp_path, half, EXPERT)
    message = "the experts there were trained on other images \\(digits "
    with pytest.raises(ConfigError, match=message) as told:
        check(tmp_path, real)
    sentence = str(told.value)
    assert sentence.startswith(f"--experts {tmp_path}: ")
    for one in (half, real):
        assert f"(digits {one.train.fingerprint[:12]})" in sentence


def test_a_place_of_other_networks_is_refused_unless_one_that_is_asked_for_is_there(
    tmp_path: Path, real: RealData
) -> None:
    trained(tmp_path, real, OTHER_NETWORK)
    message = f"of these images there are of convnet-w8-d1, and this run asks for {NETWORK}; pass that --netw"
    with pytest.raises(ConfigError, match=message):
        check(tmp_path, real)
    check(tmp_path, real, EXPERT, OTHER_NETWORK)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


@pytest.mark.parametrize("left", [0, 7, 20, -1])
def test_a_damaged_file_of_the_run_is_refused(left: int, tmp_path: Path, real: RealData) -> None:
    cut(trained(tmp_path, real, EXPERT), left)
    with pytest.raises(StoreError, match=r"expert_0003\.safetensors is damaged \(.*\); delete it"):
        check(tmp_path, real)


def test_a_flipped_weight_of_the_run_is_found(tmp_path: Path, real: RealData) -> None:
    path = trained(tmp_path, real, EXPERT)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="does not fit its digest"):
        check(tmp_path, real)


def test_a_file_that_is_none_is_not_read_into_memory(tmp_path: Path, real: RealData) -> None:
    trained(tmp_path, real, EXPERT).write_bytes(b"\xff" * 100)
    with pytest.raises(StoreError, match="its header would have 18446744073709551615 bytes"):
        check(tmp_path, real)


def test_damage_that_the_run_does_not_meet_is_left_alone(tmp_path: Path, real: RealData) -> None:
    trained(tmp_path, real, EXPERT)
    cut(trained(tmp_path, real, OTHER_RECIPE), -1)
    cut(trained(tmp_path, real, replace(EXPERT, number=7)), 20)
    check(tmp_path, real)


def test_a_file_in_another_place_is_refused(tmp_path: Path, real: RealData) -> None:
    path = trained(tmp_path, real, EXPERT)
    path.rename(path.with_name("expert_0005.safetensors"))
    with pytest.raises(
        StoreError, match=r"5\.safetensors holds the expert of .*/expert_0003\.saf.*; put it back"
    ):
        check(tmp_path, real)


def test_a_smoke_run_leaves_the_place_to_others(
    tmp_path: Path, real: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, real, EXPERT)
    few = real.hold_out(0.5)
    assert experts_place(str(tmp_path), [EXPERT], few, smoke=True, unasked="") is None
    assert "a smoke run has its own experts, in the output" in capsys.readouterr().out
    with pytest.raises(AtomError, match="other images"):
        experts_place(str(tmp_path), [EXPERT], few, smoke=False, unasked="")
    assert experts_place(None, [], few, smoke=False, unasked="") is None


MTT = ["--method", "mtt", "--network", NETWORK]
COMPARED = ["--methods", "dm", "mtt", "--network", NETWORK]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("distill", [*MTT, "--validation-frac", "0.2"], "were trained on other images (digits "),
        (
            "distill",
            ["--teacher-epoch", "1", "--network", NETWORK],
            "of convnet-w8-d1, and this run asks for",
        ),
        ("compare", [*COMPARED, "--validation-frac", "0.2"], "were trained on other images (digits "),
        ("compare", COMPARED, f"of convnet-w8-d1, and this run asks for {NETWORK}"),
        ("compare", ["--methods", "atom", "dm"], "none of the methods atom dm asks for experts"),
    ],
)
def test_commands_refuse_a_place_before_ray_starts(
    command: str,
    arguments: Sequence[str],
    message: str,
    tmp_path: Path,
    real: RealData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipelines.session.connect", lambda: pytest.fail("as far as Ray"))
    trained(tmp_path / "experts", real, OTHER_NETWORK)
    given = [*arguments, "--experts", str(tmp_path / "experts"), "--output", str(tmp_path / "out")]
    assert import_module(f"pipelines.{command}").main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_comparison_takes_a_place_that_fits_one_of_its_networks(
    tmp_path: Path, real: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReachedError(Exception):
        pass

    def connect() -> None:
        raise ReachedError

    monkeypatch.setattr("pipelines.session.connect", connect)
    trained(tmp_path / "experts", real, OTHER_NETWORK)
    given = [*COMPARED, "--settings", "mtt.network=convnet-w8-d1", "--output", str(tmp_path / "out")]
    with pytest.raises(ReachedError):
        import_module("pipelines.compare").main([*given, "--experts", str(tmp_path / "experts")])


def test_a_comparison_that_no_method_can_do_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.session.connect", lambda: pytest.fail("as far as Ray"))
    given = ["--methods", "mtt", "--network", f"{NETWORK}-batch", "--output", str(tmp_path / "out")]
    assert import_module("pipelines.compare").main(given) == 2
    assert "no method can distil this; the first says: " in capsys.readouterr().err
