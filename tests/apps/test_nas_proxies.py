"""What proxies are made of, and by which key a score is known again."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from apps.nas.proxies import KNOWN, WITHOUT_SEEDS, Proxy, check_names, part_rows
from apps.nas.settings import NasSettings
from apps.nas.space import Candidate, load_space
from apps.nas.trial import Recipe, Unit
from atom.data import ImageSet, RealData, SourceInfo
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.pixels import Pixels
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings
from pipelines.architecture import proxies
from pipelines.architecture.proxies import MAIN, gather, keys_of, say_held_out

K, H, W = 3, 8, 6
SPACE = load_space("small", channels=1, image_size=(H, W), num_classes=K)
NETWORK, OTHER = SPACE.names[:2]
SETTINGS = EvaluateSettings(epochs=3, eval_dsa_strategy="none", eval_precision="float32")
RECIPE = Recipe(SETTINGS, whole_epochs=2, steps=5)
NAMES = ("distilled", "random", "herding", "early-steps", "early-seconds", "synflow", "parameters", "whole")


def image_set(count, seed, names=("a", "b", "c")):
    rng = np.random.default_rng(seed)
    images_NCHW = rng.integers(0, 256, (count, 1, H, W), dtype=np.uint8)
    return ImageSet.create(images_NCHW, np.arange(count) % K, names)


def real_data(**parts):
    given = {"train": image_set(30, 1), "test": image_set(12, 2), "validation": image_set(9, 3), **parts}
    return RealData("x", "made:up", source=SourceInfo("Made up", "nobody", "none", ""), **given)


REAL = real_data()
PREPROCESS = Preprocess.fit(REAL.train.images, zca=False)
BRIGHT = Preprocess(PREPROCESS.mean_C + 0.25, PREPROCESS.std_C)


def distilled(method="atom", preprocess=PREPROCESS, factor=1, seed=0):
    images_NCHW = torch.from_numpy(
        np.random.default_rng(seed).standard_normal((6, 1, H, W), dtype=np.float32)
    )
    labels_N = torch.arange(K).repeat_interleave(2)
    source = {"fingerprint": REAL.train.fingerprint}
    return DistilledSet(
        images_NCHW, labels_N, ("a", "b", "c"), 2, method, preprocess, factor=factor, source=source
    )


def gathered(names=NAMES, sets=None, real=REAL, preprocess=PREPROCESS, *, ipc=2, seeds=2, seed=0, own=()):
    sets = [distilled()] if sets is None else sets
    settings = {"ipc": ipc, "seeds": seeds, "seed": seed, "own_digests": dict(own)}
    return gather(names, sets, [4.5] * len(sets), real, preprocess, **settings)


def key(proxy, material=None, *, network=NETWORK, seed=0, space=SPACE, recipe=RECIPE, device="cpu"):
    unit = Unit(network, proxy, seed)
    return keys_of([unit], material or MATERIAL, space, recipe, device)[unit]


MATERIAL = gathered()
PROXIES = ("atom", *NAMES[1:])
TRAINED = tuple(name for name in PROXIES if name not in ("synflow", "parameters"))


def changed_settings(**changes):
    return replace(RECIPE, settings=SETTINGS.model_copy(update=changes))


def test_every_known_proxy_and_the_defaults_are_accepted():
    check_names(KNOWN)
    check_names(("synflow+early-seconds+random", "kcenter"))
    check_names(("mine.py:score", "some.module:score+synflow"))
    check_names(NasSettings().proxies)
    assert set(WITHOUT_SEEDS) < set(KNOWN)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("random", "randon"), "--proxies randon: unknown proxy; known are distilled, .*whole"),
        (("random", "synflow", "random"), "--proxies random: is named twice; name every proxy once"),
        (("",), "--proxies : unknown"),
        (
            ("synflow+randon",),
            r"--proxies synflow\+randon: 'randon' is an unknown proxy; known are distilled",
        ),
        (("synflow+",), r"--proxies synflow\+: '' is an unknown proxy"),
        (("synflow+naswot+synflow",), "joins a proxy with itself; name every member once"),
        (("mine.py:score", "mine.py:score"), "mine.py:score: is named twice"),
        (("synflow+mine.score",), "'mine.score' is an unknown proxy; .*and your own as module:function"),
        (("fitted",), "fitted: has no other proxy to learn from; add some, such as synflow"),
        (("fitted", "whole"), "fitted: has no other proxy to learn from"),
        (("fitted+synflow",), "fitted joins all others already; name it alone"),
        (("synflow+whole",), "whole is what proxies are judged by; join others"),
        (("synflow+early-seconds",), "there is none; add distilled or random"),
    ],
)
def test_unknown_and_repeated_proxies_are_refused(names, said):
    with pytest.raises(ConfigError, match=said):
        check_names(names)


@pytest.mark.parametrize(
    ("name", "seeds"), [("parameters", 1), ("multiply-adds", 1), ("synflow", 3), ("atom", 3)]
)
def test_counts_need_one_seed_only(name, seeds):
    assert Proxy(name, "zero-cost", MAIN, 0).seeds(3) == range(seeds)
    assert Proxy(name, "zero-cost", MAIN, 0).seeds(0) == range(0)


def test_proxies_come_in_the_order_asked_for_with_their_kind_and_storage():
    found = [(proxy.name, proxy.kind, proxy.images) for proxy in MATERIAL.proxies]
    assert found == [
        ("atom", "set", 6),
        ("random", "set", 6),
        ("herding", "set", 6),
        ("early-steps", "steps", 30),
        ("early-seconds", "seconds", 30),
        ("synflow", "zero-cost", 0),
        ("parameters", "zero-cost", 0),
        ("whole", "whole", 30),
    ]
    spent = [proxy.prepare_seconds for proxy in MATERIAL.proxies]
    assert spent[0] == 4.5
    assert all(seconds is not None and 0 <= seconds < 4 for seconds in spent[1:])
    assert spent[3:] == [0.0] * 5
    assert MATERIAL.named("herding").name == "herding"
    assert [proxy.name for proxy in MATERIAL.without_whole] == [name for name, *_ in found[:-1]]


def test_names_with_epochs_are_trained_for_them_on_a_set_or_on_a_part_of_the_images():
    names = ("distilled:7", "random:7", "random:9", "part-40:3", "whole:2", "early-seconds")
    check_names(names)
    material = gathered(names, [distilled(), distilled()])
    assert [(p.name, p.kind, p.epochs, p.images) for p in material.proxies] == [
        ("atom:7", "set", 7, 6),
        ("atom:7-2", "set", 7, 6),
        ("random:7", "set", 7, 6),
        ("random:9", "set", 9, 6),
        ("part-40:3", "real", 3, 12),
        ("whole:2", "real", 2, 30),
        ("early-seconds", "seconds", None, 30),
    ]
    units = [Unit(NETWORK, proxy.name, 0) for proxy in material.proxies]
    keys = keys_of(units, material, SPACE, RECIPE, "cpu")
    assert len(set(keys.values())) == len(units)
    # Beside the name, which is part of the key too.
    longer = replace(
        material,
        proxies=tuple(p if p.epochs is None else replace(p, epochs=p.epochs + 1) for p in material.proxies),
    )
    again = keys_of(units, longer, SPACE, RECIPE, "cpu")
    assert [keys[unit] == again[unit] for unit in units] == [False] * 6 + [True]


@pytest.mark.parametrize("name", ["whole:0", "part-0:3", "part-100:3", "part-20", "synflow:3", "random:x"])
def test_epochs_and_parts_that_mean_nothing_are_refused(name):
    with pytest.raises(ConfigError, match=f"--proxies {name}: unknown proxy"):
        check_names((name,))


def test_a_part_has_its_share_of_every_class_and_lies_within_a_larger_one():
    labels_N = np.random.default_rng(0).integers(0, 4, 203)
    parts = {percent: part_rows(labels_N, percent) for percent in (1, 10, 35, 99, 100)}
    for percent, rows in parts.items():
        assert np.all(np.diff(rows) > 0)
        counts = np.bincount(labels_N, minlength=4)
        expected = np.ceil(counts * percent / 100)
        assert np.bincount(labels_N[rows], minlength=4).tolist() == expected.tolist()
    for smaller, larger in pairwise(parts.values()):
        assert set(smaller) <= set(larger)
    assert parts[100].tolist() == list(range(203))


def test_real_images_come_preprocessed_by_part():
    for name, part in (("train", REAL.train), ("validation", REAL.validation), ("test", REAL.test)):
        images_NCHW, labels_N = MATERIAL.real[MAIN][name]
        np.testing.assert_array_equal(images_NCHW[:], PREPROCESS.apply(part.images).numpy())
        np.testing.assert_array_equal(labels_N, part.labels)


def test_coresets_are_real_training_images_as_many_a_class_as_asked_for():
    draws, train = MATERIAL.draws(), MATERIAL.real[MAIN]["train"]
    white_NCHW = np.asarray(train[0])
    rows = {image.tobytes(): int(label) for image, label in zip(white_NCHW, train[1], strict=True)}
    assert set(draws["random"]) == {0, 1}
    assert set(draws["herding"]) == set(draws["atom"]) == {None}
    for images_NCHW, labels_N in (*draws["random"].values(), draws["herding"][None]):
        assert np.bincount(labels_N).tolist() == [2, 2, 2]
        assert [rows[image.tobytes()] for image in images_NCHW] == labels_N.tolist()
    assert draws["random"][0][0].tobytes() != draws["random"][1][0].tobytes()


def test_a_set_is_trained_on_decoded_and_counted_as_stored():
    material = gathered(("distilled",), [distilled(factor=2)])
    assert len(material.draws()["atom"][None][1]) == 4 * 6
    assert material.named("atom").images == 6


def test_sets_of_one_method_or_of_a_coresets_name_get_names_of_their_own():
    sets = [distilled("atom"), distilled("atom"), distilled("random"), distilled(MAIN)]
    material = gathered(("distilled", "random"), sets)
    assert [proxy.name for proxy in material.proxies] == ["atom", "atom-2", "random-2", "main-2", "random"]


def test_distilled_in_a_joined_proxy_stands_for_every_set():
    sets = [distilled("atom"), distilled("dm")]
    joined, *others = gathered(("distilled+synflow", "synflow", "distilled"), sets).proxies
    assert [proxy.name for proxy in others] == ["synflow", "atom", "dm"]
    assert (joined.name, joined.members) == ("atom+dm+synflow", ("atom", "dm", "synflow"))
    assert (joined.images, joined.prepare_seconds) == (6, 9.0)


def test_the_fitted_proxy_is_made_of_all_that_are_scored():
    names = ("fitted", "distilled+synflow", "distilled", "synflow", "early-steps", "whole")
    found = gathered(names, [distilled("atom"), distilled("dm")]).proxies
    assert [proxy.kind for proxy in found[:2]] == ["fitted", "combined"]
    assert found[0].members == ("atom", "dm", "synflow", "early-steps")
    assert (found[0].images, found[0].prepare_seconds) == (30, 9.0)


def test_the_preparation_of_a_joined_proxy_is_unknown_where_that_of_a_member_is():
    parts = [Proxy("a", "set", MAIN, 5, 2.0), Proxy("b", "set", MAIN, 7, None)]
    assert Proxy.made_of(parts, "combined", name="a+b").prepare_seconds is None


def test_own_proxies_go_by_their_functions_names_which_no_other_has():
    own = {"a.py:score": "1", "b.py:score": "2", "b.py:synflow": "3", "b.py:atom": "4"}
    material = gathered(("distilled", "a.py:score+parameters", "parameters", *own), own=own)
    assert [
        (proxy.name, proxy.source, proxy.digest) for proxy in material.proxies if proxy.kind == "own"
    ] == [
        ("score", "a.py:score", "1"),
        ("score-2", "b.py:score", "2"),
        ("synflow-2", "b.py:synflow", "3"),
        ("atom-2", "b.py:atom", "4"),
    ]
    assert material.proxies[1].name == "score+parameters"
    assert material.named("score").images == 0


def test_the_key_of_an_own_proxy_changes_with_its_sources_and_not_with_where_they_lie():
    keys = [
        key("score", gathered((spec,), own={spec: digest}))
        for spec, digest in (("a.py:score", "1"), ("a.py:score", "2"), ("deeper/a.py:score", "1"))
    ]
    assert keys[0] == keys[2] != keys[1]
    of_one = gathered(("a.py:score",), own={"a.py:score": "1"})
    assert len({keys[0], key("score", of_one, seed=1), key("score", of_one, network=OTHER)}) == 3


def test_a_set_with_another_preprocessing_brings_its_own_real_images():
    material = gathered(("distilled", "random"), [distilled(), distilled("dm", BRIGHT)])
    assert [(proxy.name, proxy.real) for proxy in material.proxies] == [
        ("atom", MAIN),
        ("dm", "dm"),
        ("random", MAIN),
    ]
    expected = BRIGHT.apply(REAL.test.images).numpy()
    np.testing.assert_array_equal(material.real["dm"]["test"][0][:], expected)
    assert set(gathered(sets=[distilled(), distilled("dm")]).real) == {MAIN}


def test_real_images_are_known_by_what_networks_see_however_they_are_held():
    white, labels = gathered().real[MAIN]["train"]
    pixels = Pixels(REAL.train.images, PREPROCESS)
    assert proxies._content(pixels, labels) == proxies._content(white, labels)
    assert proxies._content(pixels, labels) != proxies._content(-np.asarray(white), labels)


def test_a_set_of_other_images_is_said_and_one_of_these_is_not(capsys):
    say_held_out(distilled(), REAL, validation_frac=0.1)
    assert capsys.readouterr() == ("", "")
    say_held_out(distilled(), real_data(train=image_set(30, 9)), validation_frac=0.1)
    said = "".join(capsys.readouterr())
    assert "may have seen the validation images" in " ".join(said.split())


def test_all_units_have_different_keys_and_the_same_ones_every_time():
    units = [Unit(n, p, s) for n in (NETWORK, OTHER) for p in PROXIES for s in (0, 1)]
    keys = keys_of(units, MATERIAL, SPACE, RECIPE, "cpu")
    assert list(keys) == units
    assert len(set(keys.values())) == len(units)
    assert keys_of(units, gathered(), SPACE, RECIPE, "cpu") == keys


def test_a_key_does_not_depend_on_what_else_is_scored():
    # The proxy of equal seconds takes them from the first tiny set, and has a test of its own.
    alone = [proxy for proxy in PROXIES if proxy != "early-seconds"]
    units = [Unit(NETWORK, proxy, 0) for proxy in alone]
    few = SPACE.with_candidates(SPACE.candidates[:1])
    more = gathered((*reversed(NAMES), "kcenter", "naswot"), seeds=5)
    known = keys_of(units, MATERIAL, SPACE, RECIPE, "cpu")
    for order in (units, units[::-1]):
        assert keys_of(order, more, few, RECIPE, "cpu") == known
    assert all(key(proxy) == known[Unit(NETWORK, proxy, 0)] for proxy in alone)


def test_equal_seconds_depend_on_the_set_that_they_are_taken_from():
    assert key("early-seconds") != key("early-seconds", gathered(sets=[distilled(seed=1)]))
    assert key("early-seconds") != key("early-seconds", gathered(tuple(reversed(NAMES))))


def test_no_key_depends_on_how_long_a_set_took():
    slower = replace(MATERIAL, proxies=tuple(replace(p, prepare_seconds=99.0) for p in MATERIAL.proxies))
    assert all(key(proxy, slower) == key(proxy) for proxy in PROXIES)


@pytest.mark.parametrize("proxy", PROXIES)
def test_every_key_changes_with_seed_network_and_kind_of_device(proxy):
    changed = [
        key(proxy, seed=1),
        key(proxy, network=OTHER),
        key(proxy, device="cuda"),
        key(proxy, recipe=replace(RECIPE, threads=2)),
    ]
    assert key(proxy) not in changed
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize("proxy", PROXIES)
def test_every_key_changes_with_what_a_users_network_is_made_of(proxy):
    keys = {
        key(proxy, network="mine", space=SPACE.with_candidates([Candidate("mine", 1, 2, identity=identity)]))
        for identity in ("mine@1", "mine@2")
    }
    assert len(keys) == 2


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_key_changes_with_the_real_images_and_labels(proxy, part):
    given = getattr(REAL, part)
    pixel = given.images.copy()
    pixel[-1, 0, -1, -1] ^= 1
    labels = given.labels.copy()
    labels[[0, 1]] = labels[[1, 0]]
    others = [ImageSet.create(pixel, given.labels, ("a", "b", "c"))]
    others.append(ImageSet.create(given.images, labels, ("a", "b", "c")))
    keys = {key(proxy), *(key(proxy, gathered(real=real_data(**{part: other}))) for other in others)}
    assert len(keys) == 3


@pytest.mark.parametrize("proxy", PROXIES)
def test_every_key_changes_with_the_preprocessing(proxy):
    assert key(proxy) != key(proxy, gathered(sets=[distilled(preprocess=BRIGHT)], preprocess=BRIGHT))


def test_the_preprocessing_of_one_set_is_no_matter_of_the_others():
    material = gathered(sets=[distilled(preprocess=BRIGHT)])
    assert key("atom") != key("atom", material)
    assert all(key(proxy) == key(proxy, material) for proxy in PROXIES[1:])


@pytest.mark.parametrize("proxy", TRAINED)
@pytest.mark.parametrize(
    "changes",
    [
        {"lr_net": 0.5},
        {"momentum_net": 0.5},
        {"weight_decay": 0.0},
        {"batch_train": 16},
        {"eval_dsa_strategy": "color"},
        {"eval_precision": "bfloat16"},
        {"protocol": "idc"},
    ],
)
def test_keys_of_trainings_change_with_every_setting(proxy, changes):
    assert key(proxy) != key(proxy, recipe=changed_settings(**changes))


def test_every_setting_of_a_training_was_tried():
    tried = {"lr_net", "momentum_net", "weight_decay", "batch_train", "eval_dsa_strategy", "eval_precision"}
    tried |= {"protocol"}
    # Networks of the project have random weights whatever the last says.
    assert tried | {"epochs", "initial_weights"} == set(EvaluateSettings.model_fields)
    assert key("atom") == key("atom", recipe=changed_settings(initial_weights="drawn"))


@pytest.mark.parametrize(
    ("recipe", "changed"),
    [
        (changed_settings(epochs=9), {"atom", "random", "herding", "early-steps", "early-seconds"}),
        (replace(RECIPE, whole_epochs=9), {"whole"}),
        (replace(RECIPE, steps=9), {"early-steps"}),
        (changed_settings(lr_net=0.5), set(TRAINED)),
    ],
    ids=["epochs", "whole epochs", "steps", "step size"],
)
def test_lengths_change_the_keys_of_what_they_decide_and_none_without_training(recipe, changed):
    assert {proxy for proxy in PROXIES if key(proxy) != key(proxy, recipe=recipe)} == changed


def test_the_key_of_a_set_changes_with_its_images_and_that_of_a_coreset_with_its_seed_and_size():
    assert key("atom") != key("atom", gathered(sets=[distilled(seed=1)]))
    others = [gathered(seed=1), gathered(ipc=3)]
    assert len({key("random"), *(key("random", other) for other in others)}) == 3
    assert key("herding") != key("herding", gathered(ipc=3))
    for unmoved in ("atom", "early-steps", "synflow", "whole"):
        assert all(key(unmoved) == key(unmoved, other) for other in others)


def test_the_key_of_a_set_changes_with_its_soft_labels():
    plain = distilled()
    keys = {
        key("atom", gathered(sets=[replace(plain, soft_labels=soft)]))
        for soft in (None, torch.eye(K).repeat_interleave(2, dim=0), torch.full((6, K), 1 / K))
    }
    assert len(keys) == 3


def test_a_users_own_cost_is_part_of_the_key_of_a_score_without_training():
    keys = {
        key("parameters", network="n", space=SPACE.with_candidates([Candidate("n", 1, cost, identity="n")]))
        for cost in (1, 2, None)
    }
    assert len(keys) == 3


def test_the_order_of_images_in_a_set_is_part_of_its_key():
    given = distilled()
    swapped = replace(given, images_NCHW=given.images_NCHW[[1, 0, 2, 3, 4, 5]])
    assert key("atom") != key("atom", gathered(sets=[swapped]))
