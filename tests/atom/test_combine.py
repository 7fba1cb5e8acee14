import pytest
import torch
from distilled_samples import make_set

from atom.combine import merge, take
from atom.errors import ConfigError


def test_a_smaller_set_holds_the_first_images_of_each_class_and_no_accuracies():
    whole = make_set(ipc=3, soft_labels=torch.rand(12, 4).softmax(1))
    part = take(whole, 2)
    part.validate()
    rows = [0, 1, 3, 4, 6, 7, 9, 10]
    assert torch.equal(part.images_NCHW, whole.images_NCHW[rows])
    assert torch.equal(part.soft_labels, whole.soft_labels[rows])
    assert (part.ipc, part.results) == (2, ())
    assert part.settings == {**whole.settings, "taken_from": {"ipc": 3}}
    assert part.git_commit == whole.git_commit
    for ipc in (0, 4):
        with pytest.raises(ConfigError, match=f"take: ipc {ipc}, expected 1 to 3"):
            take(whole, ipc)


def test_sets_of_the_same_classes_add_up_their_images():
    one, other = make_set(ipc=2), make_set(ipc=1, images_NCHW=torch.zeros(4, 3, 8, 6), method="dm")
    both = merge([one, other])
    both.validate()
    assert both.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(both.images_NCHW[[0, 1, 3, 4]], one.images_NCHW[:4])
    assert both.images_NCHW[2::3].abs().sum() == 0
    assert (both.ipc, both.method, both.results, both.git_commit) == (3, "merged", (), None)
    assert [each["ipc"] for each in both.settings["merged"]] == [2, 1]
    assert both.settings["merged"][0]["git_commit"] == "0123abc"
    assert both.source == {**one.source, "symbols": False}


def test_symbols_stay_symbols_and_do_not_mix_with_other_images():
    glyphs = [make_set(source={"name": name, "symbols": True}) for name in ("one", "other")]
    assert merge(glyphs).symbols
    with pytest.raises(ConfigError, match="set 1 has symbols False, expected True"):
        merge([glyphs[0], make_set(source={"symbols": False})])


def test_sets_of_other_classes_become_one_set_of_all():
    one, other = make_set(), make_set(num_classes=2, class_names=("ox", "yak"), source={"name": "other"})
    both = merge([one, other])
    both.validate()
    assert both.class_names == (*one.class_names, "ox", "yak")
    assert torch.equal(both.images_NCHW, torch.cat([one.images_NCHW, other.images_NCHW]))
    assert (both.ipc, both.method, both.source) == (2, "atom", {"symbols": False})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"class_names": ("class 0", "b", "c", "d")},
            "class 'class 0' is in several sets whose classes differ",
        ),
        ({"zca": False}, "set 1 has preprocessing .*, expected .* as set 0"),
        ({"factor": 2}, "set 1 has factor 2, expected 1"),
        (
            {"class_names": ("ox", "yak", "gnu", "elk"), "ipc": 1},
            "set 1 has number of images a class 1, expected 2",
        ),
        ({"soft_labels": torch.eye(4).repeat_interleave(2, 0)}, "set 1 does not fit with its soft labels"),
    ],
)
def test_sets_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ConfigError, match=f"merge: {words}"):
        merge([make_set(), make_set(**changes)])


def test_no_set_is_refused():
    with pytest.raises(ConfigError, match="no set was given"):
        merge([])
