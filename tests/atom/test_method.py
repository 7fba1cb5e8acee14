"""What the seam of the methods itself promises."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

from atom.errors import ConfigError
from atom.methods import registry
from atom.methods.lookup import find_method
from atom.methods.method import Part, State
from atom.methods.settings import DistillSettings
from atom.methods.soundness import check_state, joined

K, IPC = 3, 2


def part(*classes: int, soft: bool = False, **training: object) -> Part:
    images = np.stack([np.full((IPC, 1, 4, 5), c, np.float32) for c in classes])
    labels = np.stack([np.full((IPC, K), c, np.float32) for c in classes]) if soft else None
    return Part(images, labels, training)


@pytest.mark.parametrize("units", [[(0, 1, 2)], [(2,), (0,), (1,)], [(1, 2), (0,)], [(2, 0), (1,)]])
def test_parts_are_joined_by_class_however_the_work_was_cut(units: list[tuple[int, ...]]) -> None:
    whole = joined({unit: part(*unit, soft=True, lr_net=0.1) for unit in units})
    assert whole.images.shape == (K, IPC, 1, 4, 5)
    assert whole.images[:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert whole.soft_labels is not None
    assert whole.soft_labels[:, 1, 2].tolist() == [0, 1, 2]
    assert whole.training == {"lr_net": 0.1}


@pytest.mark.parametrize("other", [part(1, soft=True), part(1, lr_net=0.1)])
def test_parts_that_contradict_each_other_are_refused(other: Part) -> None:
    with pytest.raises(ConfigError, match="soft labels in part, or different trainings"):
        joined({(0,): part(0), (1,): other})


@pytest.mark.parametrize("name", registry.NAMES)
def test_every_method_of_the_project_says_what_it_is_and_has_the_options_of_its_flags(name: str) -> None:
    method = find_method(name)
    assert method.Options is registry.options_of(name)
    assert "bibtex" in method.about.citation
    assert DistillSettings(method=name).options == method.Options()


def test_a_method_that_takes_all_classes_at_once_is_one_unit_and_others_are_cut_as_asked() -> None:
    settings = DistillSettings(classes_per_group=2)
    assert find_method("atom").units(settings, range(5)) == [(0, 1), (2, 3), (4,)]
    assert find_method("atom").units(settings, (7, 3, 9)) == [(7, 3), (9,)]


def test_options_are_given_by_name_or_as_a_whole_and_checked_either_way() -> None:
    by_name = DistillSettings.model_validate({"method": "spatial", "power": 2})
    assert by_name == DistillSettings.model_validate({"method": "spatial", "options": {"power": 2}})
    assert by_name == DistillSettings.model_validate(by_name.model_dump(mode="json"))
    with pytest.raises(ValueError, match="less than or equal to 8"):
        DistillSettings.model_validate({"power": 9})
    with pytest.raises(
        ConfigError, match="--power: the method dm does not read it, only atom, spatial, channel do"
    ):
        DistillSettings.model_validate({"method": "dm", "power": 2})


def test_with_another_method_the_options_that_it_reads_are_kept() -> None:
    asked = DistillSettings.model_validate({"power": 2, "task_balance": 0.5, "ipc": 3})
    changed = asked.changed(method="dm")
    assert (changed.ipc, changed.options.model_dump(exclude_defaults=True)) == (3, {"task_balance": 0.5})
    assert not hasattr(changed.options, "power")
    back = changed.changed(method="atom").options.model_dump()
    assert (back["task_balance"], back["power"]) == (0.5, 4)


@pytest.mark.parametrize("old", registry.NAMES)
@pytest.mark.parametrize("new", registry.NAMES)
def test_a_change_of_the_method_takes_no_default_of_the_old_one_along(old: str, new: str) -> None:
    changed = DistillSettings(method=old).changed(method=new)
    assert changed == DistillSettings(method=new)


def test_what_was_asked_of_one_method_and_is_none_of_another_is_refused_in_a_sentence() -> None:
    flat = DistillSettings.model_validate({"method": "atom", "trained_networks": 3})
    assert flat.changed(method="idc").options.model_dump()["trained_networks"] == 3
    asked = DistillSettings.model_validate({"method": "idc", "trained_networks": 3})
    with pytest.raises(ConfigError, match="--trained-networks: received 0: input should be greater than"):
        asked.changed(trained_networks=0)


def test_settings_travel_by_value() -> None:
    settings = DistillSettings.model_validate({"power": 2, "lr_img": 0.3})
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"iteration": 3}, "it stands at iteration 3, expected 4"),
        ({"arrays": {"images": [1.0]}}, "not all NumPy's, of numbers"),
        ({"arrays": {"images": np.array(["a"])}}, "not all NumPy's, of numbers"),
        ({"arrays": {"pictures": np.zeros(3)}}, r"has the arrays \['pictures'\], expected images"),
        ({"losses": np.zeros((4, 3))}, r"losses have shape \[4, 3\], expected \[4, 1\] or \[4, 2\]"),
    ],
)
def test_a_state_that_could_not_go_on_is_the_fault_of_its_method(
    changes: dict[str, object], flaw: str
) -> None:
    sound = State(4, {"images": np.zeros(3), "rate": np.array(0.1)}, np.zeros((4, 1)))
    check_state(sound, (0, 1), 4)
    check_state(replace(sound, iteration=3, losses=np.zeros((3, 2)), failures={0: "a", 1: "b"}), (0, 1), 4)
    with pytest.raises(ConfigError, match=flaw):
        check_state(replace(sound, **changes), (0, 1), 4)  # pyrefly: ignore


@pytest.mark.parametrize(
    "wrong",
    [
        Part(np.zeros((1, IPC, 4, 5), np.float32)),
        Part(np.zeros((1, IPC, 1, 4, 5))),
        Part(np.zeros((2, IPC, 1, 4, 5), np.float32)),
        Part(np.zeros((1, IPC, 1, 4, 5), np.float32), np.zeros((1, 1, K), np.float32)),
        Part(np.zeros((1, IPC, 1, 4, 5), np.float32), training={"lr": 0.1}),
    ],
)
def test_a_part_that_is_none_is_the_fault_of_its_method(wrong: Part) -> None:
    with pytest.raises(ConfigError, match=r"the method gave images .* correct its result"):
        joined({(0,): wrong})


@pytest.mark.parametrize("wrong", [{"method": 5}, {"options": 3}])
def test_settings_of_a_wrong_type_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DistillSettings.model_validate(wrong)
