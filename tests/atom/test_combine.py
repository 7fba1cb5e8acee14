import pytest
import torch
from distilled_samples import SOURCE, make_set

from atom.card import write_card
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
    assert take(part, 1).settings["taken_from"] == {"ipc": 3}
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


def test_what_all_sets_agree_on_stays_and_the_card_lists_the_rest():
    sets = [
        make_set(
            settings={"network": "convnet-w64", "seed": seed}, earlier_programs=({"git_commit": f"{seed}a"},)
        )
        for seed in range(2)
    ]
    both = merge(sets)
    assert both.settings["network"] == "convnet-w64"
    assert "seed" not in both.settings
    assert [one["earlier_programs"][0]["git_commit"] for one in both.settings["merged"]] == ["0a", "1a"]
    assert "`merged.1.settings.seed`" in write_card(both)
    assert merge(sets[:1]) is sets[0]


def test_sources_of_sets_that_were_started_from_stay_known():
    photos = {"name": "photos", "title": "Photos", "fingerprint": "cd34", "licence": "CC-BY-4.0"}
    plain, begun = make_set(), make_set(source={**SOURCE, "started_from": [photos]})
    assert plain.sources == [SOURCE]
    assert begun.sources == [SOURCE, photos]
    assert merge([plain, begun]).sources == [{**SOURCE, "symbols": False}, photos]
    card = write_card(begun)
    assert "| started from a set of | Photos |" in card
    assert "Photos: CC-BY-4.0. This set is made from it" in card


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


def test_a_training_is_kept_only_where_all_sets_carry_the_same():
    one, other = (
        make_set(training={"lr_net": 0.02, "epochs": 50}),
        make_set(training={"lr_net": 0.3, "epochs": 50}),
    )
    assert merge([one, one]).training == {"lr_net": 0.02, "epochs": 50}
    assert merge([one, other]).training == {}
