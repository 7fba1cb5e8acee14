"""`atom-learner` month after month: as a user would, from folders of photos that are gone afterwards."""

import base64
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_runs import environment, fingerprints, run_here, start, wait_for
from mlflow import pyfunc
from PIL import Image

from apps.learner.directory import read_class, read_learner
from atom import data
from atom.errors import StoreError
from pipelines.console.learner_commands import SUB_COMMANDS
from pipelines.console.options import parse
from pipelines.output.ownership import lock
from pipelines.output.store import Store
from pipelines.tracking.backend import open_client

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TINY = (
    *("--network", "convnet-w8-d2", "--distil-network", "convnet-w8-d2", "--budget", "4/class"),
    *("--iterations", 4, "--batch-real", 8, "--step-epochs", 2, "--epochs", 3, "--compile", "off"),
    *("--num-actors", 1),
)
REAL = ("--memory", "herding")


@pytest.fixture(scope="module")
def tables(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all."""
    path = tmp_path_factory.mktemp("learner") / "mlflow.db"
    shutil.copy(mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """october: digits 0 to 2; november: 4 and 3; december: 1 in another light; tests: all; PNG files."""
    folder = tmp_path_factory.mktemp("months")
    real = data.load("digits", data_dir=Path("unused"))
    parts = {"october": (0, 1, 2), "november": (4, 3), "december": (1,), "tests": (0, 1, 2, 3, 4)}
    for month, classes in parts.items():
        images = real.test if month == "tests" else real.train
        for label in classes:
            place = folder / month / f"digit {label}"
            place.mkdir(parents=True)
            for row in images.indices_of(label)[: 8 if month == "tests" else 16]:
                pixels = images.images[row, 0]
                light = 255 - pixels if month == "december" else pixels
                Image.fromarray(light).save(place / f"{row}.png")
    return folder


Learn = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def learn(tables: str, tmp_path: Path) -> Learn:
    """Runs a sub-command in this process."""

    def run(name: str, *arguments: object, **changes: Any) -> tuple[int, list[str], str]:
        more: tuple[object, ...] = ()
        if name in ("init", "add", "rollback", "forget"):
            more = ("--tracking-uri", tables)
        if name in ("init", "add"):
            more += ("--data-dir", tmp_path / "data")
        return run_here(name, *arguments, *more, script="learner", **changes)

    return run


@pytest.fixture(scope="module")
def begun(months: Path, tables: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learner after October that keeps test images and remembers real ones, which takes no actors."""
    shop = tmp_path_factory.mktemp("begun") / "shop"
    code, _, errors = run_here(
        *("init", shop, "--data", f"folder:{months / 'october'}", *TINY, *REAL, "--keep-tests", 3),
        *("--tracking-uri", tables),
        script="learner",
    )
    assert code == 0, errors
    return shop


@pytest.fixture
def shop(begun: Path, tmp_path: Path) -> Path:
    """The same, to do what one likes with."""
    return Path(shutil.copytree(begun, tmp_path / "shop"))


def content(shop: Path) -> dict[str, str]:
    """Digest of every file of a learner that decides anything."""
    return fingerprints(shop, without=(".lock",))


def holds(shop: Path, images: list[np.ndarray]) -> list[Path]:
    """Files of a learner in which one of the images lies, as it is or in memory as it is used."""
    needles = [image.tobytes() for image in images]
    found = [
        path
        for path in shop.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]
    learner = read_learner(shop)
    for version in learner.versions:
        for kept in (*version.memory.values(), *version.tests.values()):
            decoded = read_class(shop, kept, shape=(1, 8, 8)).images_NCHW
            if any(np.array_equal(image, other) for image in images for other in decoded[:, 0]):
                found.append(shop / kept.file)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_months_leave_ten_classes_and_no_photo_of_the_first(
    months: Path, learn: Learn, tmp_path: Path
) -> None:
    shop, photos = tmp_path / "shop", tmp_path / "photos"
    shutil.copytree(months, photos)
    october = [np.asarray(Image.open(path)) for path in (photos / "october").rglob("*.png")]
    assert learn("init", shop, "--data", f"folder:{photos / 'october'}", *TINY)[0] == 0
    shutil.rmtree(photos / "october")
    code, said, _ = learn("add", shop, "--data", f"folder:{photos / 'november'}")
    assert code == 0
    assert any("no test images, so the gate cannot see" in line for line in said)
    tests = ("--test", f"folder:{photos / 'tests'}", "--max-drop", 100)
    code, said, _ = learn("add", shop, "--data", f"folder:{photos / 'december'}", *tests)
    assert code == 0
    assert any("digit 1: known already, so remembered anew" in line for line in said)
    learner = read_learner(shop)
    last = learner.versions[-1]
    assert last.classes == ["digit 0", "digit 1", "digit 2", "digit 3", "digit 4"]
    assert [one.stands_for for one in last.memory.values()] == [16, 32, 16, 16, 16]
    assert set(last.accuracies) == set(last.classes)
    assert holds(shop, october) == []
    assert holds(tmp_path / "data", october) == [] if (tmp_path / "data").exists() else True
    assert not (shop / "work").exists()
    # The same images again are no new ones.
    before = content(shop)
    code, said, _ = learn("add", shop, "--data", f"folder:{photos / 'december'}")
    assert (code, said) == (0, ["Version 3 was made from these images already; there is nothing to do."])
    assert content(shop) == before
    code, said, _ = learn("predict", shop, photos / "tests")
    assert code == 0
    assert len(said) == 40
    assert all(re.fullmatch(r".+\.png\tdigit [0-4]\t[01]\.\d{4}", line) for line in said)
    code, said, _ = learn("show", shop)
    assert code == 0
    assert any("20 images made from real ones" in line for line in said)
    assert "current" in said[-1]


class KilledError(BaseException):
    """As if the process had ended."""


@pytest.mark.timeout(400)
def test_a_step_that_ends_at_any_write_goes_on_to_the_same_bits(
    shop: Path, months: Path, learn: Learn, tables: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("add", shop, "--data", f"folder:{months / 'november'}", "--max-drop", 100)
    whole = shutil.copytree(shop, tmp_path / "whole")
    assert learn("add", whole, *arguments[2:])[0] == 0
    before, put = content(shop), Store.write_bytes
    writes, limit = 0, 0

    def counted(store: Store, name: str, content: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes == limit:
            raise KilledError(name)
        put(store, name, content)

    monkeypatch.setattr(Store, "write_bytes", counted)
    monkeypatch.setattr(Store, "write_all", lambda store, files: [counted(store, *file) for file in files])
    killed = 0
    for wanted in (1, 2, 3, 4, 5, 6, 7, 100):
        writes, limit = 0, wanted
        try:
            assert learn(*arguments)[0] == 0
        except KilledError:
            killed += 1
            found = content(shop)
            assert {name: found.get(name) for name in before if name != "learner.json"} == {
                name: digest for name, digest in before.items() if name != "learner.json"
            }
            assert (shop / "current").read_text() == "0001\n"
    assert killed >= 6
    assert content(shop) == content(whole)
    client = open_client(tables)
    experiment = client.get_experiment_by_name("learner-shop")
    assert experiment is not None
    (run, *_) = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    assert (run.info.run_name, run.info.status) == ("version 2", "FINISHED")


@pytest.mark.parametrize(
    ("place", "current"),
    [
        ("pipelines.learning.run.log_curves", "0001\n"),
        ("pipelines.learning.run.judge", "0001\n"),
        ("pipelines.tracking.tracker.Tracker.use_model", "0002\n"),
    ],
)
def test_a_step_killed_while_it_tells_mlflow_is_served_by_the_same_command(
    shop: Path,
    months: Path,
    learn: Learn,
    tables: str,
    place: str,
    current: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("add", shop, "--data", f"folder:{months / 'november'}", "--max-drop", 100)

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(place, killed)
        with pytest.raises(KilledError):
            learn(*arguments)
    assert len(read_learner(shop).versions) == 2
    assert (shop / "current").read_text() == current
    assert learn(*arguments)[0] == 0
    assert (shop / "current").read_text() == "0002\n"
    client = open_client(tables)
    for alias in ("candidate", "current"):
        model = client.get_model_version_by_alias("learner-shop", alias)
        assert model.tags["atom.version"].startswith("2-")
    assert model.run_id
    run = client.get_run(model.run_id)
    curve = client.get_metric_history(model.run_id, "accuracy/00-digit_0")
    assert [point.step for point in curve] == [1, 2]
    assert run.info.status == "FINISHED" or current == "0002\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_process_leaves_current_and_the_same_command_goes_on(
    shop: Path, months: Path, learn: Learn, tables: str, tmp_path: Path
) -> None:
    arguments = ("--data", f"folder:{months / 'november'}", "--max-drop", 100, "--checkpoint-every", 2)
    arguments += ("--memory", "distilled")
    whole = shutil.copytree(shop, tmp_path / "whole")
    assert learn("add", whole, *arguments)[0] == 0
    process = start(
        *("add", shop, *arguments, "--tracking-uri", tables, "--num-actors", 1),
        script="learner",
        env=environment(),
    )
    try:
        wait_for(lambda: any(shop.glob("work/*/*/checkpoints/*.safetensors")), limit_s=200)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert (shop / "current").read_text() == "0001\n"
    assert learn("add", shop, *arguments)[0] == 0
    assert content(shop) == content(whole)


def test_the_gate_refuses_and_says_which_and_rollback_restores(
    shop: Path, months: Path, learn: Learn
) -> None:
    arguments = (
        "add",
        shop,
        "--data",
        f"folder:{months / 'november'}",
        "--test",
        f"folder:{months / 'tests'}",
    )
    # Nothing is remembered well after two epochs; what fell is named.
    code, said, _ = learn(*arguments, "--max-drop", 0)
    learner = read_learner(shop)
    fell = [
        name
        for name, one in learner.versions[1].accuracies.items()
        if one.before is not None and one.before > (one.after or 0)
    ]
    assert fell
    assert code == 1
    (refused,) = [line for line in said if line.startswith("Refused: version 2: ")]
    assert all(f"class {name!r} fell by" in refused for name in fell)
    assert (shop / "current").read_text() == "0001\n"
    assert learner.versions[1].note.startswith("refused: class")
    # Found again, and let through.
    before = fingerprints(shop / "versions")
    code, said, _ = learn(*arguments, "--max-drop", 100)
    assert code == 0
    assert fingerprints(shop / "versions") == before
    assert not any("learning version" in line for line in said)
    assert (shop / "current").read_text() == "0002\n"
    assert read_learner(shop).versions[1].note == ""
    assert learn("rollback", shop, "--to", 1)[0] == 0
    assert (shop / "current").read_text() == "0001\n"
    code, _, errors = learn("rollback", shop, "--to", 7)
    assert code == 2
    assert "--to 7: no such version; this learner has 1, 2." in errors


def test_a_class_is_forgotten_with_all_that_is_its_own(shop: Path, months: Path, learn: Learn) -> None:
    assert learn("add", shop, "--data", f"folder:{months / 'november'}", "--max-drop", 100)[0] == 0
    before = read_learner(shop).versions[-1]
    assert learn("forget", shop, "--class", "digit 4")[0] == 0
    learner = read_learner(shop)
    now = learner.versions[-1]
    assert now.classes == [name for name in before.classes if name != "digit 4"]
    assert "deleted when 'digit 4' was forgotten" in learner.versions[1].removed
    assert not (shop / "versions" / "0002").exists()
    assert not list(shop.glob("*/digit_4-*"))
    assert len(list(shop.glob("memory/*"))) == 4
    code, said, _ = learn("predict", shop, months / "tests" / "digit 0")
    assert code == 0
    assert "digit 4" not in "".join(line.partition("\t")[2] for line in said)
    code, _, errors = learn("rollback", shop, "--to", 2)
    assert (code, "deleted when 'digit 4' was forgotten" in errors) == (2, True)
    # It may come again, as a new one.
    code, _, _ = learn("add", shop, "--data", f"folder:{months / 'november'}", "--max-drop", 100)
    assert code == 0
    assert read_learner(shop).versions[-1].classes[-1] == "digit 4"


def test_mlflow_has_the_curves_of_all_versions_and_a_model_that_follows_current(
    shop: Path, months: Path, learn: Learn, tables: str
) -> None:
    client = open_client(tables)

    def named() -> dict[str, str]:
        """Number of the learner's version by alias."""
        found = client.get_registered_model("learner-shop").aliases
        versions = {
            name: client.get_model_version("learner-shop", str(number)) for name, number in found.items()
        }
        return {name: one.tags["atom.version"].partition("-")[0] for name, one in versions.items()}

    add = ("add", shop, "--data", f"folder:{months / 'november'}")
    assert learn(*add, "--max-drop", 100)[0] == 0
    assert named() == {"candidate": "2", "current": "2"}
    model = client.get_model_version_by_alias("learner-shop", "current")
    assert model.run_id
    curve = client.get_metric_history(model.run_id, "accuracy/00-digit_0")
    assert [point.step for point in curve] == [1, 2]
    photo = next((months / "tests" / "digit 0").iterdir())
    asked = pd.DataFrame({"image": [base64.b64encode(photo.read_bytes()).decode()]})
    answer = pyfunc.load_model(str(model.source)).predict(asked).iloc[0]
    code, said, _ = learn("predict", shop, photo)
    assert said == [f"{photo}\t{answer['class']}\t{answer['probabilities'][answer['class']]:.4f}"]
    assert learn("rollback", shop, "--to", 1)[0] == 0
    assert named() == {"candidate": "2", "current": "1"}
    code, _, errors = learn("forget", shop, "--class", "digit 4")
    assert (code, errors) == (0, "")
    assert named() == {"candidate": "1", "current": "1"}


def test_real_images_are_remembered_instead_and_both_are_compared(
    months: Path, learn: Learn, tmp_path: Path
) -> None:
    shop = tmp_path / "shop"
    common = ("--validation-frac", 0.2)
    asked = ("--memory", "herding", "--learner", "der++", "--compress")
    code, said, _ = learn("init", shop, "--data", f"folder:{months / 'october'}", *TINY, *asked, *common)
    assert code == 0
    assert any(re.fullmatch(r"(herding|distilled) stored more accuracy a byte\.", line) for line in said)
    code, _, _ = learn("add", shop, "--data", f"folder:{months / 'december'}", "--max-drop", 100)
    assert code == 0
    last = read_learner(shop).versions[-1]
    (comes_back,) = [kept for name, kept in last.memory.items() if name == "digit 1"]
    assert (comes_back.kind, comes_back.images, comes_back.stands_for) == ("herding", 4, 13 + 16)


def test_a_dry_run_says_what_is_needed_and_writes_nothing(
    shop: Path, months: Path, learn: Learn, tmp_path: Path
) -> None:
    before = content(shop)
    code, said, _ = learn("add", shop, "--data", f"folder:{months / 'november'}", "--dry-run")
    assert code == 0
    assert "Nothing was" in said[-2] + said[-1]
    assert content(shop) == before
    fresh = tmp_path / "fresh"
    assert learn("init", fresh, "--data", f"folder:{months / 'october'}", *TINY, "--dry-run")[0] == 0
    assert not fresh.exists()


@pytest.fixture
def broken(months: Path, tmp_path: Path) -> Path:
    """November, to be broken."""
    return Path(shutil.copytree(months / "november", tmp_path / "november"))


def empty_class(folder: Path) -> None:
    (folder / "digit 7").mkdir()


def corrupt(folder: Path) -> None:
    path = next((folder / "digit 3").iterdir())
    path.write_bytes(path.read_bytes()[:40])


def other_size(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).resize((12, 12)).save(path)


def colour(folder: Path) -> None:
    path = next((folder / "digit 3").iterdir())
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (empty_class, r"DataError: .*digit 7: the directory is empty; every class needs images\."),
        (corrupt, r"DataError: .*\.png: not an image Pillow can read"),
        (other_size, r"DataError: .*images of 12x12 pixels .* this learner takes 8x8"),
        (colour, r"DataError: .*images in colour, but this learner takes grey ones"),
        (gone, r"DataError: .*november does not exist; expected a directory with the image set"),
    ],
)
def test_bad_images_are_one_sentence_and_current_stays(
    breaks: Callable[[Path], None], message: str, shop: Path, broken: Path, learn: Learn
) -> None:
    before = content(shop)
    breaks(broken)
    code, _, errors = learn("add", shop, "--data", f"folder:{broken}")
    assert code == 2
    assert len(errors.splitlines()) == 1, errors
    assert re.match(message, errors), errors
    assert content(shop) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add",), r"ConfigError: --data is missing"),
        (
            ("add", "--data", "digits", "--classes", "11"),
            r"ConfigError: --classes '11': not among the classes",
        ),
        (("add", "--data", "digits", "--max-drop", "-1"), r"ConfigError: --max-drop: received -1"),
        (
            ("add", "--data", "digits", "--network", "vit"),
            r"ConfigError: --network vit: this learner's network",
        ),
        (("rollback",), r"ConfigError: --to is missing; this learner has 1\."),
        (
            ("forget", "--class", "cat"),
            r"ConfigError: --class 'cat': no class of this learner; it knows digit 0",
        ),
        (("predict",), r"ConfigError: atom-learner predict: name an image"),
        (("predict", "no/such"), r"ConfigError: no/such: no such image or folder"),
        (("init", "--data", "digits"), r"ConfigError: .* is a learner already; pass new images to"),
        (("init", "--data", "digits", "--method", "dsa", "--trained-networks", "3"), r"ConfigError: "),
        (
            ("init", "--data", "digits", "--distil-network", "a.py:b"),
            r"ConfigError: --distil-network a.py:b: code",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    arguments: tuple[str, ...], message: str, shop: Path, learn: Learn
) -> None:
    before = content(shop)
    code, _, errors = learn(arguments[0], shop, *arguments[1:])
    assert code == 2
    assert len(errors.splitlines()) == 1, errors
    assert re.match(message, errors), errors
    assert content(shop) == before


def test_a_directory_that_is_no_learner_or_a_newer_one_is_refused(
    shop: Path, months: Path, learn: Learn, tmp_path: Path
) -> None:
    for name in ("add", "show", "rollback", "forget", "export", "predict"):
        for folder in (tmp_path / "none", months):
            code, _, errors = learn(name, folder)
            assert code == 2
            assert re.fullmatch(r"ArtifactError: .* is no learner: .*\n", errors), errors
    assert not (tmp_path / "none").exists()
    told = json.loads((shop / "learner.json").read_text())
    (shop / "learner.json").write_text(json.dumps(told | {"format_version": 2}))
    code, _, errors = learn("add", shop, "--data", f"folder:{months / 'november'}")
    assert code == 2
    assert re.fullmatch(
        r"ArtifactError: .*format version 2, expected 1; install a newer version .*\n", errors
    )


def test_a_second_step_waits_for_the_first(shop: Path, months: Path, learn: Learn) -> None:
    with lock(Store.open(shop)):
        for name, *more in (("add", "--data", f"folder:{months / 'november'}"), ("rollback", "--to", "1")):
            code, _, errors = learn(name, shop, *more)
            assert code == 2
            assert re.fullmatch(
                r"StoreError: The output .* is being written by process .*; wait .* pass another directory\.\n",
                errors,
            )


@pytest.mark.parametrize("at", ["memory/", "learner.json", "current"])
def test_a_full_disk_is_one_sentence_and_current_stays(
    at: str, shop: Path, months: Path, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.write_bytes

    def full(store: Store, name: str, content: bytes) -> None:
        if name.startswith(at):
            raise StoreError(f"Cannot write {store.where(name)}: the disk is full; free some space.")
        put(store, name, content)

    monkeypatch.setattr(Store, "write_bytes", full)
    arguments = ("add", shop, "--data", f"folder:{months / 'november'}", "--max-drop", 100)
    code, _, errors = learn(*arguments)
    assert code == 2
    assert "the disk is full" in errors
    assert (shop / "current").read_text() == "0001\n"
    monkeypatch.undo()
    assert learn(*arguments)[0] == 0
    assert (shop / "current").read_text() == "0002\n"


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_every_setting_of_a_sub_command_has_a_line_of_help(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    command = SUB_COMMANDS[name]
    with pytest.raises(SystemExit) as stopped:
        parse(command, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag, about in command().flags().items():
        shown = flag.upper() if flag in command.positional else f"--{flag.replace('_', '-')}"
        assert shown in text
        assert about.info.description, flag
        assert len(about.info.description) <= 210, flag
        assert about.info.description.endswith("."), flag


def test_an_unknown_sub_command_is_one_sentence(learn: Learn) -> None:
    code, _, errors = learn("ad", "shop")
    assert (code, errors.count("\n")) == (2, 1)
    assert "did you mean 'add'?" in errors
