"""Whether images show written symbols: known by what they are, carried with them, never by a folder's name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distilled_samples import make_set

from atom import data
from atom.data import ImageSet, RealData, SourceInfo
from atom.distilled import describe_source
from atom.symbols import named_like_symbols


def real(name: str, class_names: tuple[str, ...]) -> RealData:
    labels = np.arange(len(class_names)).repeat(4)
    images = ImageSet.create(np.zeros((len(labels), 1, 4, 4), np.uint8), labels, class_names)
    return RealData(name, f"folder:{name}", images, images, SourceInfo("", "", "", ""))


@pytest.mark.parametrize(
    "names",
    [list("0123456789"), ["zero", "Seven"], ["0 - zero", "1 - one"], ["a", "B", "é"], ["digit_3"]],
)
def test_digits_and_letters_are_symbols(names: list[str]) -> None:
    assert named_like_symbols(names)


@pytest.mark.parametrize(
    "names", [["cat", "dog"], ["1", "cat"], ["0", "10"], ["upper", "lower"], ["c1", "c2"]]
)
def test_other_names_are_none(names: list[str]) -> None:
    assert not named_like_symbols(names)


def test_the_name_of_the_folder_decides_nothing() -> None:
    digits = tuple("0123456789")
    assert real("mnist", digits).symbols
    assert real("my-mnist", digits).symbols
    assert not real("mnist", ("cat", "dog")).symbols


def test_what_somebody_said_stays_with_the_images() -> None:
    said = replace(real("cats", ("cat", "dog")), said_symbols=True)
    assert said.hold_out(0.5).symbols
    assert said.with_images(said.train, said.test).symbols
    assert data.load("digits", data_dir=Path("unused")).symbols


def test_a_set_carries_what_its_images_show(tmp_path: Path) -> None:
    said = replace(real("cats", ("cat", "dog")), said_symbols=True)
    path = make_set(source=describe_source(said)).save(tmp_path / "set")
    assert type(make_set()).load(path).symbols


def test_a_set_from_before_it_was_recorded_is_judged_by_its_classes() -> None:
    made = make_set(source={"name": "cifar10"})
    assert made.symbols is named_like_symbols(made.class_names)
