import re

import pytest
import yaml
from distilled_samples import RESULTS, SOURCE, make_set

from atom.card import write_card
from atom.combine import merge, take
from atom.hub import MOST_NAMED, licence_id, quote, size_category
from atom.rivals import against_random, lost_to_random


def split(card):
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_header_is_in_the_form_of_the_hub():
    header, _ = split(write_card(make_set(factor=2)))
    assert header["license"] == "unknown"
    assert header["pretty_name"] == "CIFAR-10, distilled to 2 images per class, factor 2"
    assert header["task_categories"] == ["image-classification"]
    assert header["size_categories"] == ["n<1K"]
    assert header["annotations_creators"] == ["machine-generated"]
    assert header["source_datasets"] == ["extended|cifar10"]
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    label = header["dataset_info"]["features"][1]
    assert label["dtype"]["class_label"]["names"] == {str(i): f"class {i}" for i in range(4)}


def test_names_of_more_classes_than_people_read_are_left_to_the_manifest():
    few, many = (write_card(make_set(num_classes=count, ipc=1)) for count in (MOST_NAMED, MOST_NAMED + 1))
    assert len(split(few)[0]["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]) == MOST_NAMED
    assert "dataset_info" not in split(many)[0]
    told = "The names of the classes are in `set.json`."
    assert (told in few, told in many) == (False, True)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", "mit"),
        ("Apache-2.0", "apache-2.0"),
        ("Apache License 2.0", "apache-2.0"),
        ("CC BY 4.0 (UCI Machine Learning Repository)", "cc-by-4.0"),
        ("CC BY-NC 4.0", "cc-by-nc-4.0"),
        ("CC0: Public Domain", "cc0-1.0"),
        ("The authors state no licence and ask to be cited.", "unknown"),
        ("The authors' page states no licence.", "unknown"),
        ("Unknown: ask whoever provided the images.", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("For non-commercial use only.", "other"),
        ("No licence of its own; ImageNet's terms ask for research use.", "other"),
        ("Mitsubishi terms", "other"),
    ],
)
def test_licences_are_mapped_to_the_hubs_identifiers(licence, expected):
    assert licence_id(licence) == expected


def test_other_licence_is_named_in_header_and_body():
    header, body = split(write_card(make_set(source=SOURCE | {"licence": "For non-commercial use only."})))
    assert header["license"] == "other"
    assert header["license_name"] == "For non-commercial use only."
    assert "CIFAR-10: For non-commercial use only. This set is made from it" in body


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M")],
)
def test_size_category_counts_decoded_images(num_images, expected):
    assert size_category(num_images) == expected


@pytest.mark.parametrize(
    "text", ['a"b\\c', "line\nbreak", "\x00\x7f\x85\u2028", "猫 😀", "- x: y", "", "no", "1"]
)
def test_quoted_text_is_read_back_by_yaml(text):
    assert yaml.safe_load(quote(text)) == text


def test_results_show_spread_and_baselines():
    body = split(write_card(make_set()))[1]
    assert "| method | network | test accuracy % | n | epochs |" in body
    assert "| atom | convnet | 31.50 ± 0.70 | 5 | 300 |" in body
    assert "| random | convnet | 14.20 ± 0.60 | 5 | 300 |" in body


def test_a_single_training_has_no_spread():
    rows = [{"method": "atom", "network": "vit", "mean": 31.5, "std": std, "n": 1} for std in (None, 0.0)]
    body = split(write_card(make_set(results=rows)))[1]
    assert body.count("31.50 (one training)") == 2
    assert "± 0.0" not in body


def with_networks(**means):
    rows = []
    for network, (own, random) in means.items():
        for method, mean in (("atom", own), ("random", random)):
            rows.append({"method": method, "network": network, "mean": mean, "std": 2.0, "n": 3})
    return rows


def test_card_lists_the_networks_tried_and_those_the_set_fails():
    body = write_card(make_set(results=with_networks(convnet=(85.3, 70.9), resnet18=(12.5, 68.3))))
    assert "* Tried on: convnet, resnet18." in body
    assert "below random images of the same storage: resnet18 (12.5 ± 2.0 against 68.3 ± 2.0)." in body
    body = write_card(make_set(results=with_networks(convnet=(85.3, 70.9))))
    assert "* Fails none of those" in body
    body = write_card(make_set(results=with_networks(convnet=(85.3, 70.9))[:1]))
    assert "Random images were not tried beside it" in body
    assert "## Networks" not in write_card(make_set(results=()))


def test_a_set_with_soft_labels_is_compared_with_random_images_that_have_them_too():
    rows = with_networks(vgg11=(60.0, 50.0))
    rows += [{**rows[1], "method": "random + teacher labels", "mean": 70.0}]
    rival = "random images with the same teacher's labels"
    assert lost_to_random(rows, "atom") == (
        f"Worse than {rival} for vgg11 (60.0 ± 2.0 against 70.0 ± 2.0): do not use this set for such networks."
    )
    body = write_card(make_set(results=rows))
    assert f"**Fails**, below {rival}: vgg11 (60.0 ± 2.0 against 70.0 ± 2.0)." in body
    assert "Fails none" not in body
    # A set of random images is not compared with random images.
    assert (
        lost_to_random(
            [{**row, "method": row["method"].replace("atom", "set (random)")} for row in rows], "set (random)"
        )
        is None
    )


def test_a_card_cites_the_source_of_a_teachers_labels():
    assert "Qin" not in write_card(make_set(method="dm"))
    assert write_card(make_set(method="dm", settings={"teacher": {"epoch": 3}})).count("qin2024label") == 1
    assert (
        write_card(make_set(method="random", settings={"teacher": {"epoch": 3}})).count("qin2024label") == 1
    )


def test_accuracies_with_real_statistics_are_compared_with_their_like():
    rows = with_networks(vgg11=(60.0, 50.0))
    rows += [{**row, "statistics_images": 64, "mean": 40.0 + 4 * i} for i, row in enumerate(rows)]
    assert lost_to_random(rows, "atom") == (
        "Worse than random images for vgg11 (64 real) (40.0 ± 2.0 against 44.0 ± 2.0): do not use this set for such"
        " networks."
    )
    assert [one.network for one in against_random(rows, "atom")] == ["vgg11", "vgg11 (64 real)"]


def test_a_difference_within_the_spread_is_told_without_advice():
    rows = with_networks(vgg11=(40.0, 41.0), vit=(20.0, 30.0))
    assert lost_to_random(rows, "atom") == (
        "Worse than random images for vit (20.0 ± 2.0 against 30.0 ± 2.0): do not use this set for such networks."
        " No better than random images, within the spread, for vgg11 (40.0 ± 2.0 against 41.0 ± 2.0)."
    )
    body = write_card(make_set(results=rows))
    assert "**Fails**, below random images of the same storage: vit (20.0 ± 2.0 against 30.0 ± 2.0)." in body
    assert "Within the spread, no better than random images of the same storage: vgg11" in body
    assert "Fails none" not in body


def test_coreset_of_random_images_is_not_compared_with_itself():
    assert against_random(RESULTS, "random") == []
    named = [{**row, "method": "set (random)"} if row["method"] == "atom" else row for row in RESULTS]
    assert against_random(named, "set (random)") == []
    assert lost_to_random(RESULTS, "atom") is None


def test_results_without_numbers_are_said_to_be_missing():
    assert "Not evaluated yet." in write_card(make_set(results=()))
    body = write_card(make_set(results=[{"method": "atom", "mean": 30.0, "std": None, "accuracies": [30.0]}]))
    assert "30.00 (spread not known)" in body
    assert "accuracies" not in body


def test_settings_are_listed_with_nested_ones_dotted():
    body = write_card(make_set())
    assert "| `matching.power` | `4` |" in body
    assert "| `matching.dsa` | `['flip', 'crop']` |" in body
    assert "0123abc" in body


@pytest.mark.parametrize(("method", "expected", "unexpected"), [
    ("atom", "2405.01373", "WACV"),
    ("spatial", "DataDAM", "WACV"),
    ("dm", "Distribution Matching", "ICCV"),
    ("random", "real training images", "2405.01373"),
])  # fmt: skip
def test_card_tells_what_the_method_is_and_whom_to_cite(method, expected, unexpected):
    body = write_card(make_set(method=method))
    assert expected in body
    assert unexpected not in body
    assert "Krizhevsky" in body


def test_card_states_the_limits():
    body = write_card(make_set())
    assert "clipped to [0, 1]" in body
    assert "learned, not photographed" in body
    assert "may still show training images" in body


def test_bare_set_has_a_card_too():
    header, body = split(
        write_card(make_set(source={}, settings={}, versions={}, git_commit=None, results=()))
    )
    assert header["source_datasets"] == ["extended|unknown"]
    assert "None" not in body


def test_code_in_the_card_runs(tmp_path, monkeypatch):
    path = make_set().save(tmp_path / "set")
    blocks = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(path)
    names: dict = {}
    exec(blocks[0], names)
    assert names["images"].shape == (8, 3, 8, 6)


def test_other_scores_stand_beside_the_accuracy_where_rows_have_them():
    scores = {"balanced_mean": 45.5, "balanced_std": 2.25, "auc_mean": 0.8125, "auc_std": 0.01}
    rows = (RESULTS[0] | scores | {"auc_low": 0.75, "auc_high": 0.875}, RESULTS[1])
    _, body = split(write_card(make_set(results=rows)))
    head = "| method | network | test accuracy % | balanced accuracy % | AUC and its 95 % interval | n | epochs |"
    assert head in body
    assert "| atom | convnet | 31.50 ± 0.70 | 45.5 ± 2.2 | 0.812 ± 0.010 [0.750, 0.875] | 5 | 300 |" in body
    assert "| random | convnet | 14.20 ± 0.60 |  |  | 5 | 300 |" in body
    strange = ({**RESULTS[0], "balanced_mean": "<b>", "auc_mean": [1], "auc_low": {}},)
    assert "AUC" not in split(write_card(make_set(results=strange)))[1]


AUDIT = {
    "non_members": "held-out training images",
    "caveat": "",
    "findings": [
        {
            "set": "atom",
            "members": "it was made from",
            "attack": "loss",
            "advantage": {"value": -0.001, "low": -0.05, "high": 0.05},
            "auc": {"value": 0.5, "low": 0.47, "high": 0.53},
            "hits_at_1_percent": {"value": None, "low": 0.0, "high": 1.0},
            "num_members": 200,
            "num_non_members": 201,
        }
    ],
    "copies": {"atom": {"num_near": 3, "num_images": 8}},
}


def test_card_says_what_the_set_gives_away_once_that_was_asked(tmp_path):
    made = make_set(audit=AUDIT)
    assert made.save(tmp_path / "set")
    again = type(made).load(tmp_path / "set")
    assert again.audit == made.audit
    body = (tmp_path / "set" / "README.md").read_text()
    assert (
        "| atom | it was made from | loss | 0.00 (-0.05 to 0.05) | 0.50 (0.47 to 0.53) | ? (0.00 to 1.00) |"
        in body
    )
    assert "Near-copies of an image that it was made from: 3 of 8 images." in body
    assert "What it gives away" not in write_card(make_set())


def test_audit_from_outside_can_be_anything_and_is_escaped():
    for audit in ({"findings": 3}, {"findings": ["x"]}, {"findings": []}, {"copies": 1}):
        assert "What it gives away" not in write_card(make_set(audit=audit))
    card = write_card(make_set(audit={"findings": [{"set": "<b>|", "auc": [1]}], "copies": {"<b>|": 4}}))
    assert r"&lt;b&gt;\|" in card
    assert "<b>" not in card


def test_smaller_set_leaves_the_audit_behind():
    assert take(make_set(audit=AUDIT), ipc=1).audit == {}
    assert merge([make_set(audit=AUDIT), make_set(audit=AUDIT)]).audit == {}
