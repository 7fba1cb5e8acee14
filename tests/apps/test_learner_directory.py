"""The files of a learner, what they are refused for, classes that come back, the gate, and a version in use."""

# N images, C channels, H height, W width

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.continual.exemplars import Exemplars
from apps.continual.state import LearnerState
from apps.learner import serving
from apps.learner.card import readme, report
from apps.learner.directory import (
    PREPROCESS,
    check_free,
    class_file,
    folder_of,
    learner_json,
    read_class,
    read_current,
    read_learner,
    safe_name,
    state_files,
    unused_files,
    work_folders,
)
from apps.learner.gate import fallen, refusal
from apps.learner.growth import Body
from apps.learner.merging import fit_channels, interleaved, new_order, repeats, weighted
from apps.learner.record import FORMAT_VERSION, Accuracy, Kept, Learner, Version
from apps.served import Served
from atom.errors import ArtifactError, ConfigError, DataError
from atom.preprocess import Preprocess
from atom.streams import stream
from atom.tensor_files import tensor_bytes
from pipelines.console.learner_commands import InitCommand
from pipelines.learner import main
from pipelines.learning.forgetting import forget_class
from pipelines.learning.tracking import curve_names
from pipelines.learning.versions import digests
from pipelines.output.store import Store

C, H, W = 3, 8, 8
CLASSES = ["cat", "dog|s", "ÄÖ ../x"]


def settings() -> dict[str, dict[str, object]]:
    command = InitCommand()
    parts = ("choices", "training", "distill", "evaluate")
    found = {part: getattr(command, part).model_dump(mode="json") for part in parts}
    return found | {"distill": found["distill"] | {"zca": "off"}}


def images(number: int, channels: int = C) -> np.ndarray:
    return stream(0, "test/learner directory").integers(0, 256, (number, channels, H, W), dtype=np.uint8)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A learner of one version."""
    folder = tmp_path / "shop"
    body = Body("convnet-w8-d1", C, (H, W))
    states = state_files(LearnerState(1, body.begin(3, seed=0, step=1)))
    preprocess = Preprocess.fit(images(20), zca=True)
    tensors = {PREPROCESS: tensor_bytes(preprocess.tensors(), {"format_version": FORMAT_VERSION})}
    memory, files = {}, dict(tensors)
    for name in CLASSES:
        memory[name], content = class_file(Exemplars(images(2)), name, kind="distilled", stands_for=9)
        files[memory[name].file] = content
    version = Version(
        number=1,
        parent=None,
        step="init",
        classes=CLASSES,
        learned=dict.fromkeys(CLASSES, 9),
        key="k",
        memory=memory,
        accuracies={"cat": Accuracy(after=80.0, images=5)},
        judged_by="kept of every class",
        sha256=digests(states),
    )
    learner = Learner(
        format_version=FORMAT_VERSION,
        network=body.network,
        identity=body.network,
        head=sorted(body.head()),
        channels=C,
        image_size=[H, W],
        symbols=False,
        settings=settings(),
        sha256=digests(tensors),
        versions=[version],
    )
    files |= {f"{folder_of(1)}/{name}": content for name, content in states.items()}
    files |= {"current": b"0001\n", "learner.json": learner_json(learner)}
    files[f"{folder_of(1)}/README.md"] = readme(learner, version).encode()
    files[f"{folder_of(1)}/report.html"] = report(learner, version).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def rewritten(shop: Path, change: dict[str, object]) -> None:
    told = json.loads((shop / "learner.json").read_text())
    (shop / "learner.json").write_text(json.dumps(told | change))


def test_a_version_is_loaded_and_its_card_runs_as_printed(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, preprocess, classes = serving.load_version(shop)
    assert classes == CLASSES
    assert net(preprocess.apply(images(4))).shape == (4, 3)
    card = (shop / folder_of(1) / "README.md").read_text()
    monkeypatch.chdir(shop)
    for block in card.split("```python\n")[1:]:
        exec(compile(block.partition("```")[0], "README.md", "exec"), {})
    assert "<script" not in (shop / folder_of(1) / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "install a newer version of this project"),
        ({"channels": "three"}, "channels: .*received 'three'"),
        ({"strange": 1}, "strange"),
    ],
)
def test_another_format_is_refused(shop: Path, change: dict[str, object], message: str) -> None:
    rewritten(shop, change)
    with pytest.raises(ArtifactError, match=message):
        read_learner(shop)


@pytest.mark.parametrize("name", ["/etc/passwd", "memory/../../x.safetensors", "memory/a/b.safetensors", "x"])
def test_no_name_leads_out_of_the_directory(name: str) -> None:
    fields = {"sha256": "", "kind": "tests", "images": 1, "num_bytes": 1, "stands_for": 1}
    with pytest.raises(ValueError, match="should be memory/NAME"):
        Kept.model_validate({"file": name, **fields})


@pytest.mark.parametrize("name", ["network", "method"])
def test_a_directory_names_no_code_to_run(shop: Path, name: str) -> None:
    told = json.loads((shop / "learner.json").read_text())["settings"]
    told["distill"][name] = "evil.py:run"
    rewritten(shop, {"settings": told})
    with pytest.raises(ArtifactError, match="should be one of this project's"):
        read_learner(shop)
    rewritten(shop, {"settings": settings(), "network": "evil.py:run"})
    with pytest.raises(ConfigError, match=r"code of yours, evil.py:run, which is run only if you say so"):
        serving.load_version(shop)


def test_a_changed_file_is_refused(shop: Path) -> None:
    learner = read_learner(shop)
    kept = learner.versions[0].memory["cat"]
    assert read_class(shop, kept, shape=(C, H, W)).num_images == 2
    with pytest.raises(ArtifactError, match="images of another shape"):
        read_class(shop, kept, shape=(C, H, W + 1))
    for name in (kept.file, f"{folder_of(1)}/model.safetensors", PREPROCESS):
        content = bytearray((shop / name).read_bytes())
        content[-1] ^= 1
        (shop / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="another content"):
        read_class(shop, kept, shape=(C, H, W))
    with pytest.raises(ArtifactError, match="another content"):
        serving.load_version(shop)


@pytest.mark.parametrize("text", ["", "7\n", "../x", "latest"])
def test_current_that_names_no_version_is_refused(shop: Path, text: str) -> None:
    (shop / "current").write_text(text)
    with pytest.raises(ArtifactError, match=r"expected the number of a version in learner\.json"):
        read_current(shop, read_learner(shop))


def test_what_no_version_names_is_left_over(shop: Path) -> None:
    old = "cat-0123456789ab.safetensors"
    (shop / "memory" / old).write_bytes(b"")
    (shop / "versions" / "0002").mkdir()
    found = [path.name for path in unused_files(shop, read_learner(shop))]
    assert found == [old, "0002"]


OWN_FILES = ("tests/test_mine.py", "memory/notes.txt", "versions/v1.txt", "work/thesis.txt", "work/ab/x.txt")


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def test_what_is_no_file_of_a_learner_is_never_left_over(shop: Path) -> None:
    work = f"work/{'0' * 16}"
    put(shop, *OWN_FILES, f"{work}/settings.json", f"work/{'1' * 16}/thesis.txt")
    assert unused_files(shop, read_learner(shop)) == []
    assert work_folders(shop) == [shop / work]
    assert work_folders(shop, but="0" * 16) == []


@pytest.mark.parametrize("name", [*OWN_FILES, "readme.txt", "versions/0001/thesis.txt", "versions/2024/x"])
def test_a_learner_begins_among_no_files_of_others(name: str, tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    put(tmp_path, name)
    with pytest.raises(
        ConfigError, match="which is no part of a learner; a learner begins in a new or empty"
    ):
        check_free(tmp_path)


def test_rollback_to_a_refused_version_says_why_it_was_refused(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.learning.tracking.point_current", lambda *_: None)
    learner = read_learner(shop)
    (version,) = learner.versions
    note = "refused: class 'cat' fell by 15.0 points"
    (shop / "learner.json").write_bytes(
        learner_json(learner.model_copy(update={"versions": [version.model_copy(update={"note": note})]}))
    )
    assert main(["rollback", str(shop), "--to", "1"]) == 0
    said = capsys.readouterr().out
    assert "Note: the gate refused this version: class 'cat' fell by 15.0 points." in said
    assert read_learner(shop) == learner


class KilledError(BaseException):
    """As if the process had ended."""


def test_a_class_is_forgotten_wherever_the_command_was_killed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, killed = Store.write_bytes, 0
    for limit in range(1, 9):
        folder = Path(shutil.copytree(shop, tmp_path / str(limit)))
        left = [
            folder / f"work/{'0' * 16}/settings.json",
            folder / read_learner(folder).versions[0].memory["cat"].file,
        ]
        put(folder, f"work/{'0' * 16}/settings.json")
        writes = 0

        def counted(store: Store, name: str, content: bytes, limit: int = limit) -> None:
            nonlocal writes
            writes += 1
            write(store, name, content)
            if writes == limit:
                raise KilledError(name)

        with monkeypatch.context() as patched:
            patched.setattr(Store, "write_bytes", counted)
            try:
                forget_class(Store.open(folder), read_learner(folder), "cat")
            except KilledError:
                killed += 1
        assert forget_class(Store.open(folder), read_learner(folder), "cat") == 0
        learner = read_learner(folder)
        assert read_current(folder, learner).classes == CLASSES[1:]
        assert not any("cat" in one.classes for one in learner.versions if not one.removed)
        assert not any(path.exists() for path in left)
        assert not (folder / "versions" / "0001").exists()
    assert killed >= 3


def test_what_could_not_be_deleted_is_said(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shop / read_learner(shop).versions[0].memory["cat"].file
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    assert forget_class(Store.open(shop), read_learner(shop), "cat") == 1
    said = capsys.readouterr().out
    assert "Not all is forgotten: 1 files" in said
    assert str(file) in said
    assert "are deleted" not in said


def test_a_learner_begins_where_its_first_step_was_killed(shop: Path) -> None:
    for name in ("learner.json", "current"):
        (shop / name).unlink()
    put(
        shop,
        ".lock",
        "mlflow.db-journal",
        "mlartifacts/1/x",
        "versions/.partial-x/y",
        f"work/{'0' * 16}/.lock",
    )
    check_free(shop)


def test_names_of_classes_are_safe_names_of_files_and_do_not_meet() -> None:
    kept = Exemplars(images(1))
    names = ["a/b", "a\\b", "../../etc", "x" * 300, "ä" * 300, "."]
    files = [class_file(kept, name, kind="distilled", stands_for=1)[0].file for name in names]
    assert len(set(files)) == len(names)
    assert all(len(file.encode()) < 200 and file.count("/") == 1 and ".." not in file for file in files)
    assert safe_name("mug") == "mug"


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:FutureWarning")
def test_served_probabilities_are_those_of_network_and_preprocessing(shop: Path, tmp_path: Path) -> None:
    net, preprocess, classes = serving.load_version(shop)
    expected = serving.probabilities(net, preprocess, images(3))
    torch.testing.assert_close(
        Served(net, preprocess)(torch.from_numpy(images(3))).detach().numpy(),
        expected,
        atol=1e-5,
        rtol=1e-4,
    )
    file, learner = tmp_path / "out" / "model.pt", read_learner(shop)
    serving.export(net, preprocess, classes, form="torchscript", file=file, learner=learner)
    loaded = torch.jit.load(str(file))
    found = loaded(torch.from_numpy(images(3))).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "model.pt.json").read_text())["classes"] == CLASSES


@pytest.mark.parametrize("num_images", [1, 3])
def test_onnx_runtime_answers_as_network_and_preprocessing_do(
    shop: Path, tmp_path: Path, num_images: int
) -> None:
    loaded, file = serving.load_version(shop), tmp_path / "model.onnx"
    serving.export(*loaded, form="onnx", file=file, learner=read_learner(shop))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"images": images(num_images)})
    expected = serving.probabilities(*loaded[:2], images(num_images))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
    assert sorted(path.name for path in tmp_path.glob("model.onnx*")) == ["model.onnx", "model.onnx.json"]


def test_missing_packages_for_onnx_are_named(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loaded = serving.load_version(shop)
    with pytest.raises(ConfigError, match=r"the package onnx is missing; pip install 'atom-distill\[onnx\]'"):
        serving.export(*loaded, form="onnx", file=tmp_path / "m.onnx", learner=read_learner(shop))
    assert not list(tmp_path.glob("*.onnx*"))


def test_photos_in_grey_or_colour_are_fitted_or_refused(shop: Path) -> None:
    learner = read_learner(shop)
    grey = images(2, channels=1)
    assert np.array_equal(serving.fitting(grey, learner, "x"), np.repeat(grey, 3, axis=1))
    assert fit_channels(np.repeat(grey, 3, axis=1), 1).tolist() == grey.tolist()
    with pytest.raises(DataError, match="images in colour, but this learner takes grey ones"):
        serving.fitting(images(2), learner.model_copy(update={"channels": 1}), "x")
    with pytest.raises(
        DataError, match=r"images of 6x8 pixels .* takes 8x8 and was begun without --image-size"
    ):
        serving.fitting(images(2)[..., :6], learner, "x")


@given(st.integers(1, 50), st.integers(1, 20))
def test_remembered_images_stand_for_as_many_as_there_were(total: int, number: int) -> None:
    counts = repeats(total, number)
    assert sum(counts) == max(total, number)
    assert max(counts) - min(counts) <= 1


def test_a_class_that_comes_back_is_weighed_by_what_it_stands_for() -> None:
    new, old = torch.zeros(10, 1, 2, 2), torch.ones(3, 1, 2, 2)
    rows = weighted(new, old, stands_for=30)
    assert len(rows) == 40
    assert rows.mean().item() == pytest.approx(0.75)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(1, 9))
def test_every_prefix_of_a_merged_memory_holds_both_in_proportion(
    old: int, new: int, old_weight: int, new_weight: int
) -> None:
    order = interleaved(old, new, old_weight=old_weight, new_weight=new_weight, most=old + new)
    assert len(set(order)) == old + new
    share = old_weight / (old_weight + new_weight)
    for end in range(1, len(order) + 1):
        taken = sum(kind == 0 for kind, _ in order[:end])
        if taken < old and end - taken < new:
            assert abs(taken - share * end) <= 1


def test_curves_of_classes_do_not_meet(shop: Path) -> None:
    (version,) = read_learner(shop).versions
    now = version.model_copy(
        update={"classes": ["杯子", "盘子", "mug a", "mug_a", "mug/a"], "accuracies": {}}
    )
    found = curve_names([now, version])
    assert list(found.values())[:5] == ["00-__", "01-__", "02-mug_a", "03-mug_a", "04-mug_a"]
    assert found["cat"] == "05-cat"
    assert len(set(found.values())) == len(found)


def test_old_classes_keep_their_labels() -> None:
    assert new_order([], ["b", "a"]) == ["a", "b"]
    assert new_order(["b", "a"], ["c", "a", "B"]) == ["b", "a", "B", "c"]


def test_the_gate_names_the_classes_that_fell() -> None:
    found = {"a": Accuracy(before=90, after=80), "b": Accuracy(before=90, after=79.9), "c": Accuracy(after=0)}
    lost = fallen(found, max_drop=10)
    assert list(lost) == ["b"]
    assert refusal(lost, max_drop=10).startswith("class 'b' fell by 10.1 points")
