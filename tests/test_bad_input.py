"""Bad input as a user meets it: one sentence on standard error, exit code 2, nothing left behind."""

import hashlib
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from atom.data import load
from atom.distilled import DistilledSet
from atom.errors import ArtifactError
from atom.preprocess import Preprocess
from pipelines import audit, compare, continual, distill, evaluate, nas

Refused = Callable[..., str]

MAIN = {
    "atom-distill": distill.main,
    "atom-evaluate": evaluate.main,
    "atom-compare": compare.main,
    "atom-continual": continual.main,
    "atom-audit": audit.main,
    "atom-nas": nas.main,
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output that does not exist yet."""
    return tmp_path / "runs" / "out"


@pytest.fixture
def refused(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path, out: Path
) -> Refused:
    """Runs a command that must be refused, and returns its sentence."""

    def run(*arguments: str, command: str = "atom-distill") -> str:
        before, data_dir = snapshot(out), tmp_path / "data"
        capfd.readouterr()
        code = MAIN[command](["--output", str(out), "--data-dir", str(data_dir), *arguments])
        sentence = capfd.readouterr().err
        assert code == 2
        assert len(sentence.splitlines()) == 1, sentence
        assert re.fullmatch(r"(Config|Shape|Data|Artifact|Store|Cluster)Error: .+[.?]\n", sentence), sentence
        assert not caplog.records
        assert snapshot(out) == before
        assert not list(tmp_path.rglob(".partial-*"))
        return sentence

    return run


def snapshot(directory: Path) -> dict[str, str] | None:
    """Digest of every file; None if there is nothing, not even an empty directory."""
    if not directory.exists():
        return None
    if directory.is_file():
        return {"": hashlib.sha256(directory.read_bytes()).hexdigest()}
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def picture(seed: int, size: int = 8) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three training images and one test image, 8x8 JPEG."""
    root = tmp_path / "pets"
    for part, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                picture(number).save(root / part / name / f"{number}.jpg")
    return root


@pytest.fixture
def parquet(folder: Path, tmp_path: Path) -> Path:
    """The same images in the Hugging Face layout."""
    root = tmp_path / "table"
    root.mkdir()
    for part in ("train", "test"):
        files = sorted((folder / part).rglob("*.jpg"))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        labels = [int(file.parent.name == "dog") for file in files]
        pq.write_table(pa.table({"image": images, "label": labels}), root / f"{part}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar11"], r"--dataset 'cifar11' is not known; known are digits,.*mean 'cifar10'\?"),
        (["--dataset", "folder:"], "'folder:' names no place; expected folder:PATH"),
        (
            ["--dataset", "folder:/no/such"],
            "/no/such does not exist; expected a directory with the image set",
        ),
        (
            ["--dataset", "cifar10", "--no-download"],
            r"cifar-10-python.tar.gz is in .*; put one of them there",
        ),
        (
            ["--test-part", "val"],
            "--test-part val: digits has no such choice; it is for folder, parquet, webdataset and npz",
        ),
        (
            ["--class-names", "a", "b"],
            "--class-names a b: digits has no such choice, since digits has names of its",
        ),
        (
            ["--init", "hering"],
            "--init hering: no such set; expected real, noise, herding, kcenter, or the place",
        ),
        (["--ipc", "1000"], "--ipc 1000: class '8' of digits has only 140 training images; pass --ipc 140"),
        (
            ["--ipc", "50", "--factor", "2"],
            r"--ipc 50 with --factor 2 \(which starts from 200 real images a class\).* pass --ipc 35 or less",
        ),
        (["--ipc", "0"], "--ipc: received 0: input should be greater than or equal to 1"),
        (["--ipc", "-3"], "--ipc: received -3: input should be greater than or equal to 1"),
        (["--factor", "9"], "--factor: received 9: input should be less than or equal to 8"),
        (["--iterations", "-1"], "--iterations: received -1: input should be greater than or equal to 0"),
        (["--lr-img", "nan"], "--lr-img: received nan: input should be a finite number"),
        (["--lr-img", "inf"], "--lr-img: received inf: input should be a finite number"),
        (["--momentum-img", "1"], r"--momentum-img: received 1.0: input should be less than 1"),
        (["--num-actors", "0"], "--num-actors: received 0: input should be greater than or equal to 1"),
        (["--gpus-per-actor", "-1"], r"--gpus-per-actor: received -1.0: input should be greater than or"),
        (["--image-size", "2"], "--image-size: received 2: input should be greater than or equal to 4"),
        (["--image-size", "5000"], "--image-size 5000 is out of range; expected 1 to 1024 pixels"),
        (["--network", "convnett"], r"network 'convnett': unknown; known are convnet, .*mean 'convnet'\?"),
        (["--network", "convnet-d99"], "ConvNet depth 99: expected 1 to 8 blocks"),
        (["--eval-networks", "convnet", "vgg12"], r"network 'vgg12': unknown; known are .*mean 'vgg11"),
        (["--network", "missing_file.py:build"], r"missing_file.py"),
        (["--baselines", "best"], "--baselines best: unknown coreset; known are random, herding, kcenter"),
        (
            ["--dsa-strategy", "color_blur"],
            "--dsa-strategy 'color_blur': unknown operation 'blur'; known are",
        ),
        (["--eval-dsa-strategy", "blur"], "--eval-dsa-strategy 'blur': unknown operation 'blur'; known are"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: cannot be read .*; pass an existing YAML"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_refused(refused: Refused, arguments: list[str], message: str) -> None:
    assert re.search(message, refused(*arguments))


@pytest.mark.parametrize(
    "arguments", [["--bogus", "3"], ["--ipc", "many"], ["--ipc"], ["--zca", "perhaps"], ["stray"]]
)
def test_flag_that_cannot_be_parsed_ends_with_code_2(
    arguments: list[str], out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        distill.main(["--output", str(out), *arguments])
    assert stopped.value.code == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not out.exists()


def test_a_shard_that_was_cut_off_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").write_bytes(b"cut" * 300)
    sentence = refused("--dataset", f"webdataset:{tmp_path}/{{train,test}}-0.tar")
    assert "DataError: " in sentence
    assert "test-0.tar: the shard does not exist; fetch it" in sentence
    (tmp_path / "test-0.tar").write_bytes(b"")
    sentence = refused("--dataset", f"webdataset:{tmp_path}")
    assert re.search(r"DataError: \S+train-0\.tar: damaged or cut off after its beginning", sentence)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_place_at_a_uri_that_is_not_there_is_named(
    refused: Refused, s3: Callable[[Path, str], str], kind: str
) -> None:
    sentence = refused("--dataset", f"{kind}:s3://me:pa55word@images/none")
    assert re.search(
        rf"DataError: {kind}:s3://\*\*\*@images/none: s3://images/none does not exist; exp", sentence
    )
    assert "pa55word" not in sentence


def test_corrupt_jpeg_in_a_folder_is_named(refused: Refused, folder: Path, tmp_path: Path) -> None:
    broken = folder / "train" / "dog" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    sentence = refused("--dataset", f"folder:{folder}")
    assert re.search(rf"DataError: {broken}: .*; replace or remove it, or pass --skip-broken", sentence)
    assert not (tmp_path / "data").exists()


def test_image_of_the_wrong_size_is_named(refused: Refused, folder: Path, tmp_path: Path) -> None:
    odd = folder / "train" / "dog" / "2.jpg"
    picture(9, size=10).save(odd)
    sentence = refused("--dataset", f"folder:{folder}")
    assert re.search(
        rf"{odd}: the image is 10x10 .*, expected 8x8 like .*0\.jpg; pass --image-size", sentence
    )
    assert not (tmp_path / "data").exists()


def test_class_without_test_images_is_named(refused: Refused, folder: Path) -> None:
    shutil.rmtree(folder / "test" / "dog")
    sentence = refused("--dataset", f"folder:{folder}")
    assert f"{folder / 'test' / 'dog'}: the directory does not exist; every class needs images" in sentence


def test_truncated_parquet_is_named(refused: Refused, parquet: Path, tmp_path: Path) -> None:
    shard = parquet / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    sentence = refused("--dataset", f"parquet:{parquet}")
    assert re.search(rf"DataError: {shard}: not a whole parquet file .*; fetch the file again", sentence)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ipc: [1", r"is not valid YAML \(.*\); expected lines such as `ipc: 10`"),
        (b"\xff\xfe\x00", r"is not valid YAML \(.*\); expected lines such as `ipc: 10`"),
        (b"ipc: 2001-13-45", r"is not valid YAML \(month must be in 1..12\)"),
        (
            b"batch_real: 3\nbatch-real: 4\n",
            "a setting is there twice, with - and with _; leave one of them out",
        ),
        (b"- ipc\n- 3\n", "holds list, expected lines of setting and value"),
        (b"", "holds nothing, expected lines of setting and value"),
        (b"ipx: 3\n", "'ipx' is not a setting of atom-distill; did you mean 'ipc'?"),
        (b"colour_of_the_sky: 3\n", "is not a setting of atom-distill; `atom-distill --help` lists the"),
        (b"ipc: 0\n", "--ipc: received 0: input should be greater than or equal to 1"),
        (
            b"method: datadam\n",
            "--method datadam: unknown method; expected one of atom, spatial, channel, dm, dc, dsa, idc, ",
        ),
        (b"mode: atom\n", "'mode' is not a setting of atom-distill; did you mean 'method'?"),
        (
            b"method: dm\npower: 3\n",
            "--power: the method dm does not read it, only atom, spatial, channel do",
        ),
        (b"eval_networks: convnet\n", "--eval-networks: received 'convnet': input should be a valid tuple"),
    ],
)
def test_wrong_config_file_is_named(refused: Refused, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    sentence = refused("--config", str(path))
    assert sentence.startswith(f"ConfigError: --config {path}: ")
    assert re.search(message.replace("?", r"\?"), sentence)


def test_relative_output_is_refused_inside_a_ray_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(tmp_path)
    sentence = refused("--output", "results")
    assert "--output results: a Ray job runs in a directory that is deleted after it; pass an abs" in sentence
    assert not (tmp_path / "results").exists()


def test_relative_place_for_experts_is_refused_inside_a_ray_job(
    monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    sentence = refused("--method", "mtt", "--experts", "experts")
    assert "--experts experts: a Ray job runs in a directory that is deleted after it" in sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experts", "there"], "--experts there: the method atom asks for no experts"),
        (
            ["--method", "dd", "--ipc", "3", "--distill-steps", "2"],
            "--distill-steps 2: the 3 images of a class",
        ),
        (["--method", "mtt", "--network", "convnet-batch"], "BatchNorm"),
        (["--images-in-all", "5"], "the method atom does not read it, only dd, rat-bptt, datm do"),
        (
            ["--method", "datm", "--images-in-all", "0"],
            "--images-in-all: received 0: input should be greater",
        ),
        (
            ["--method", "dd", "--images-in-all", "5"],
            "labels are hard, and a class without an image could not be",
        ),
        (
            ["--method", "datm", "--images-in-all", "15", "--ipc", "3"],
            "--ipc 3: --images-in-all 15 comes to at most 2 of each of 10 classes; leave one of the two out",
        ),
        (
            ["--method", "datm", "--images-in-all", "3000"],
            "--images-in-all 3000 (which starts from 300 real images a class): class '8' of digits has only 140"
            " training images; pass --images-in-all 1400 or less.",
        ),
    ],
)
def test_what_a_method_refuses_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(
        "pipelines.session.connect", lambda: pytest.fail("the command has come as far as Ray")
    )
    assert message in refused(*arguments)


def test_experts_of_a_set_without_teachers_are_refused(
    refused: Refused, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipelines.session.connect", lambda: pytest.fail("the command has come as far as Ray")
    )
    given = ["--set", str(artifact), "--experts", str(tmp_path / "experts")]
    assert "the set tells of no teachers" in refused(*given, command="atom-evaluate")
    missing = refused("--set", "nonsense://x", command="atom-evaluate")
    assert "Cannot open --set nonsense://x" in missing


def test_address_that_leads_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    sentence = refused()
    assert re.search(
        r"ClusterError: No Ray cluster answers at RAY_ADDRESS=127.0.0.1:9 .*unset RAY_ADDRESS", sentence
    )


def test_ray_that_is_too_slow_to_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, out: Path
) -> None:
    import ray

    def timed_out(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", timed_out)
    sentence = refused()
    assert re.search(
        r"a private cluster on this machine: .* timed out during startup.*; check free", sentence
    )
    assert not out.exists()


def test_interrupt_before_any_work_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.real_images.load_real", interrupted)
    assert distill.main(["--output", str(out)]) == 130
    assert capfd.readouterr().err == "Stopped. The same command goes on from the last checkpoint.\n"
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestWithACluster:
    """What is only known once Ray and the output are at hand."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["--gpus-per-actor", "1"],
                r"--gpus-per-actor 1 needs 1 GPU, but this cluster has none. .*pass --gpus-per-actor 0",
            ),
            (
                ["--num-actors", "99"],
                r"--num-actors 99 .* do not fit .* 2 CPUs .*; pass --num-actors 2 or less",
            ),
            (
                ["--threads-per-actor", "64"],
                r"One actor needs 64 CPUs .*; pass a smaller --threads-per-actor",
            ),
            (
                ["--tracking-uri", "http://127.0.0.1:9"],
                r"No MLflow server answers at --tracking-uri http://127",
            ),
            (
                ["--tracking-uri", "records"],
                r"--tracking-uri records: MLflow no longer keeps .*; pass sqlite:",
            ),
            (["--output", "nonsense://x"], r"Cannot open --output nonsense://x: .*; pass a path, or a URI"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_impossible_request_is_refused(
        self, refused: Refused, arguments: list[str], message: str
    ) -> None:
        assert re.search(message, refused(*arguments))

    def test_factor_too_large_for_the_images_is_refused(self, refused: Refused, folder: Path) -> None:
        arguments = ["--dataset", f"folder:{folder}", "--image-size", "4", "--factor", "5", "--init", "noise"]
        assert (
            "--factor 5: images of 4x4 pixels cannot hold that many tiles of two pixels a side; pass at"
            in refused(*arguments)
        )

    def test_output_that_is_a_file_is_refused(self, refused: Refused, out: Path) -> None:
        out.parent.mkdir()
        out.write_text("precious")
        sentence = refused()
        assert re.search(
            rf"StoreError: Cannot write {out}.*is a file, not a directory; pass another", sentence
        )
        assert out.read_text() == "precious"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_unwritable_output_is_refused(self, refused: Refused, out: Path) -> None:
        out.mkdir(parents=True)
        out.chmod(0o555)
        assert "permission is denied; make it writable or pass another --output" in refused()

    def test_output_of_other_settings_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, refused: Refused, out: Path, mlflow_uri: str
    ) -> None:
        monkeypatch.setattr(distill, "run", lambda *_: 0)
        assert distill.main(["--output", str(out), "--tracking-uri", mlflow_uri]) == 0
        sentence = refused("--ipc", "2")
        assert re.search(
            rf"StoreError: The output {out} belongs to other settings: ipc \(received 2, stored 1\); pass",
            sentence,
        )

    def test_second_driver_on_one_output_is_refused(self, refused: Refused, out: Path) -> None:
        from pipelines.output.ownership import lock
        from pipelines.output.store import Store

        with lock(Store.open(out)):
            sentence = refused()
        assert re.search(rf"The output {out} is being written by process {os.getpid()} on ", sentence)

    def test_refused_command_leaves_the_files_that_were_there(self, refused: Refused, out: Path) -> None:
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
        refused("--tracking-uri", "http://127.0.0.1:9")
        assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A whole set of ten digits."""
    real = load("digits", data_dir=tmp_path / "source")
    firsts = np.array([real.train.indices_of(c)[0] for c in range(10)])
    preprocess = Preprocess.fit(real.train.images, zca=False)
    chosen = DistilledSet(
        images_NCHW=preprocess.apply(real.train.images[firsts]),
        labels=torch.arange(10),
        class_names=real.train.class_names,
        ipc=1,
        factor=1,
        method="random",
        preprocess=preprocess,
        settings={},
        source={"spec": "digits"},
        versions={},
    )
    chosen.save(tmp_path / "set")
    return tmp_path / "set"


class _Bomb:
    """Pickled, it deletes the directory it was made for."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return shutil.rmtree, (str(self.target),)


def _nan(directory: Path) -> None:
    tensors = load_file(directory / "distilled.safetensors")
    tensors["images"][3, 0, 1, 2] = float("nan")
    save_file(tensors, directory / "distilled.safetensors")


def _pickle(directory: Path) -> None:
    (directory / "distilled.safetensors").write_bytes(pickle.dumps(_Bomb(directory)))


def _cut(directory: Path) -> None:
    path = directory / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def _without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def _future(directory: Path) -> None:
    path = directory / "set.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _nan,
            r"set: 1 of 640 values of images are NaN or infinite, first at \(3, 0, 1, 2\), expected finite",
        ),
        (_pickle, r"distilled.safetensors is not a safetensors file.*since pickles run code: .*again"),
        (_cut, r"distilled.safetensors is not a safetensors file, or is cut short .*again"),
        (
            _without("distilled.safetensors"),
            r"set: distilled.safetensors is missing, expected .*; copy the set",
        ),
        (_without("set.json"), r"set: set.json is missing, expected .*; copy the set"),
        (
            _without("preprocess.safetensors"),
            r"set: preprocess.safetensors is missing, expected .*; copy the",
        ),
        (_future, r"set.json: format version 99, expected 1; install a newer version"),
        (shutil.rmtree, r"set does not exist, expected the directory of a distilled set; check the path"),
    ],
    ids=["nan", "pickle", "cut", "no tensors", "no manifest", "no preprocessing", "version", "no directory"],
)
def test_damaged_artifact_is_refused(
    refused: Refused, artifact: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(artifact)
    before = snapshot(artifact)
    assert re.search(message, refused("--set", str(artifact), command="atom-evaluate"))
    with pytest.raises(ArtifactError, match=message):
        DistilledSet.load(artifact)
    assert snapshot(artifact) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--set is missing: pass the directory of a distilled set, or runs:/RUN_ID/set"),
        (["--set", "runs:/abc/set"], "runs:/abc/set names an MLflow artifact, but not where MLflow is; pass"),
        (["--set", __file__], "is a file, expected the directory of a distilled set; pass its directory"),
        (
            ["--set", "data_best.pt"],
            "atom.exports.import_dc_pt reads those of other projects, and save(DIRECTORY)",
        ),
    ],
)
def test_set_that_cannot_be_found_is_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_best.pt").write_bytes(b"")
    assert message in refused(*arguments, command="atom-evaluate")


def test_set_of_other_classes_than_the_test_images_is_refused(
    refused: Refused, artifact: Path, folder: Path
) -> None:
    arguments = ["--set", str(artifact), "--dataset", f"folder:{folder}"]
    sentence = refused(*arguments, command="atom-evaluate")
    assert re.search(r"its classes are cat, dog, .*but the set was distilled for 0, 1, 2", sentence)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--set is missing: pass the directory of a distilled set, or runs:/RUN_ID/set"),
        (["--baselines", "best"], "--baselines best: unknown coreset; known are random, herding, kcenter"),
        (["--eval-seeds", "0"], "--eval-seeds: received 0: input should be greater than or equal to 1"),
        (["--audit-images", "1"], "--audit-images: received 1: input should be greater than or equal to 2"),
    ],
)
def test_audit_of_nothing_is_refused(refused: Refused, arguments: list[str], message: str) -> None:
    assert message in refused(*arguments, command="atom-audit")


def test_audit_of_a_set_made_from_other_images_is_refused(refused: Refused, artifact: Path) -> None:
    sentence = refused("--set", str(artifact), "--smoke", command="atom-audit")
    assert re.search(
        r"was made from other training images than --dataset digits has, .*pass the source", sentence
    )


class TestContinual:
    """What a stream cannot be; all but the last is refused before Ray is started."""

    @pytest.fixture(autouse=True)
    def no_cluster(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        def started() -> None:
            pytest.fail("the command has come as far as Ray")

        if "ray_cluster" not in request.fixturenames:
            monkeypatch.setattr("pipelines.session.connect", started)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--steps", "11"], r"--steps 11: the source has 10 classes, .* pass 1 to 10"),
            (
                ["--budget", "9 images"],
                "memory budget of 9 images: 10 classes need 10 images or more at the last",
            ),
            (
                ["--budget", "639B"],
                "memory budget of 639 bytes: 10 classes need 640 bytes, 64 an image, or more",
            ),
            (
                ["--budget", "71B/class", "--memories", "distilled"],
                "71 bytes a class: an image takes 72 bytes",
            ),
            (
                ["--learners", "er", "icarl"],
                r"--learners icarl: unknown; known are gdumb, er, er-ace, der\+\+",
            ),
            (["--memories", "herd"], "--memories herd: unknown; known are none, reservoir, random, herding"),
            (["--memories", "set"], "the memory 'set' and --set go together; pass --set PATH"),
            (
                ["--dataset", "digits"],
                "'digits' has no number of steps of its own; pass --steps, or one of seq-",
            ),
            (["--score-on", "validation"], "there are no validation images; pass --validation-frac"),
            (
                ["--looks", "sepia", "plain"],
                "--looks sepia: unknown; known are plain, invert, rotate, blur, contrast",
            ),
            (["--looks", "plain"], "--looks plain: pass two or more, each once"),
            (
                ["--looks", "plain", "blur", "--steps", "2"],
                "--steps: a step brings all classes of one of the looks",
            ),
            (
                ["--looks", "plain", "blur", "--class-order", "0"],
                "--class-order: a step brings all classes of one",
            ),
            (
                ["--looks", "plain", "blur", "--blurred", "0.1"],
                "--looks and --blurred: each is a protocol of its own",
            ),
            (["--blurred", "0.5", "--steps", "1"], "--blurred 0.5: with 1 step there is no border"),
            (["--blurred", "0.001"], "--blurred 0.001: of no class that is one whole image"),
            (["--return-after", "6"], "--return-after 6: between 1 and the 5 steps of the stream"),
            (
                ["--return-after", "2", "--compress"],
                "--compress with --return-after: how the parts of a class share",
            ),
            (
                ["--blurred", "0.1", "--set", "x", "--memories", "set"],
                "--set with --blurred: a set holds a class whole, but it comes in parts here",
            ),
            (
                ["--online", "--memories", "random", "herding"],
                "--online: herding is made of all images of a class at once.* pass --memories random reservoir",
            ),
            (["--online"], "--online: herding is made of all images of a class at once"),
            (
                ["--online", "--memories", "random", "--step-epochs", "2"],
                "--step-epochs 2: with --online every image",
            ),
            (
                ["--online", "--memories", "random", "--compress"],
                "--online with --compress: what the next image takes",
            ),
            (
                ["--looks", "plain", "blur", "--memories", "distilled-idc"],
                "--memories distilled-idc: idc trains networks on whole classes first, but they come in parts here",
            ),
            (["--dataset", "sessions:nowhere"], "sessions:nowhere: nowhere does not exist"),
            (
                ["--method", "datm", "--images-in-all", "5"],
                "--images-in-all 5: --budget says how many images a memory has",
            ),
        ],
        ids=" ".join,
    )
    def test_stream_budget_or_name_that_cannot_be_is_refused(
        self, refused: Refused, out: Path, arguments: list[str], message: str
    ) -> None:
        assert re.search(message, refused(*arguments, command="atom-continual"))
        # What earlier runs left there stays as it is.
        (out / "cells").mkdir(parents=True)
        (out / "cells" / "step00.json").write_text("{}")
        assert re.search(message, refused(*arguments, command="atom-continual"))

    def test_set_of_other_classes_or_shape_is_refused(
        self, refused: Refused, artifact: Path, folder: Path
    ) -> None:
        given = ["--set", str(artifact), "--memories", "set"]
        pets = ["--dataset", f"folder:{folder}", "--steps", "2"]
        sentence = refused(*given, *pets, command="atom-continual")
        assert re.search(r"its classes are cat, dog, .*but the set was distilled for 0, 1, 2", sentence)
        large = DistilledSet.load(artifact)
        images_NCHW = torch.nn.functional.interpolate(large.images_NCHW, size=10)
        replace(large, images_NCHW=images_NCHW).save(artifact.with_name("large"))
        given = ["--set", str(artifact.with_name("large")), "--memories", "set"]
        sentence = refused(*given, command="atom-continual")
        assert "its images are (1, 8, 8), but the set's are (1, 10, 10)" in sentence

    def test_set_of_images_in_all_is_refused(self, refused: Refused, artifact: Path) -> None:
        whole, given = DistilledSet.load(artifact), ["--set", str(artifact.with_name("few"))]
        few = replace(whole, images_NCHW=whole.images_NCHW[:5], labels=whole.labels[:5])
        replace(few, soft_labels=torch.full((5, 10), 0.1)).save(artifact.with_name("few"))
        sentence = refused(*given, "--memories", "set", command="atom-continual")
        assert (
            "few: the set has 5 images in all for 10 classes, not as many of each, which a memory" in sentence
        )

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_cluster")
    @pytest.mark.parametrize("fitted_on", ["all", "first-step"])
    def test_set_whose_whitening_cannot_be_exchanged_binds_nobody(
        self, refused: Refused, artifact: Path, out: Path, fitted_on: str
    ) -> None:
        tiled = replace(DistilledSet.load(artifact), factor=2)
        tiled.save(artifact.with_name("tiled"))
        arguments = ["--set", str(artifact.with_name("tiled")), "--memories", "set", "--zca", "on"]
        sentence = refused(*arguments, "--preprocess-on", fitted_on, command="atom-continual")
        assert "the distilled set has factor 2 and another ZCA whitening than this run" in sentence
        assert not out.exists()

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_cluster")
    def test_tracking_server_that_does_not_answer_binds_nobody(self, refused: Refused, out: Path) -> None:
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
        refused("--memories", "random", "--tracking-uri", "http://127.0.0.1:9", command="atom-continual")
        assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "atom", "nope"], "--methods nope: unknown method; expected one of atom, spatial"),
        (["--methods"], "--methods: there is none; name one or more"),
        (["--methods", "dm", "dm"], "--methods dm dm: one is there twice"),
        (["--methods", "dm", "random"], "random, herding, kcenter stand in every table already"),
        (["--ipc", "1", "0"], "received 0: input should be greater than or equal to 1"),
        (["--ipc", "10", "10"], "--ipc 10 10: pass one number or more, none twice"),
        (["--ipc", "1", "1000"], "--ipc 1000: class '8' of digits has only 140 training images"),
        (["--eval-seeds", "0"], "--eval-seeds 0: there would be nothing to compare; pass 1 or more"),
        (
            ["--init", "runs/first/set"],
            "--init runs/first/set: expected one of real, noise, herding, kcenter",
        ),
        (
            ["--power", "3"],
            "--power: is a setting of atom, spatial, channel alone; pass --settings atom.power",
        ),
        (["--settings", "power=3"], "--settings power=3: expected METHOD.NAME=VALUE"),
        (["--settings", "dc.lr_img=3"], "--settings dc.lr_img=3: dc is not among --methods atom dm"),
        (["--settings", "dm.seed=3"], "--settings dm.seed=3: seed is the same for all methods; pass --seed"),
        (
            ["--settings", "dm.method=dc"],
            "--settings dm.method=dc: which methods there are is decided by --methods",
        ),
        (["--settings", "dm.batch_real=["], "--settings dm.batch_real=[: the value is not valid YAML (while"),
        (["--settings", "dm.batch_real=2001-13-45"], "the value is not valid YAML (month must be in 1..12)"),
        (
            ["--settings", "dm.batch_real=3", "dm.batch-real=4"],
            "--settings dm.batch-real=4: dm.batch_real is there twice; leave one of them out",
        ),
        (
            [
                *("--methods", "dm", "dsa", "--network", "convnet-w8-d2"),
                *("--settings", "dsa.outer_steps=1", "dsa.inner_epochs=5"),
            ],
            "--settings of dsa: --inner-epochs 5: with one outer step dsa never trains its network",
        ),
        (
            ["--methods", "atom", "mtt", "--settings", "mtt.batch_syn=99"],
            "--settings of mtt: --batch-syn 99",
        ),
        (
            ["--methods", "dm", "--init", "noise", "--ipc", "1000"],
            "too few for the coreset of equal storage that stands in every table; pass a smaller --ipc",
        ),
        (["--settings", "dm.power=3"], "--settings of dm: 'power' is not a setting of dm"),
        (["--settings", "dm.dataset=svhn"], "--settings of dm: 'dataset' is not a setting of dm"),
        (["--settings", "dm.batch_real=x"], "--settings of dm: --batch-real: received 'x': input should be"),
        (
            ["--methods", "mtt", "--batch-real", "9"],
            "--batch-real: none of the methods mtt reads it; leave it out",
        ),
        (
            ["--methods", "datm", "--settings", "datm.images_in_all=5"],
            "--settings datm.images_in_all=5: tables here are by images a class; leave it out",
        ),
        (["--images-in-all", "5"], "--images-in-all: tables here are by images a class; leave it out"),
        (["--network", "convnett"], "network 'convnett': unknown"),
        (["--methods", "missing.py:Mine"], "missing.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_comparison_that_cannot_be_is_refused_before_ray(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("pipelines.session.connect", lambda: pytest.fail("as far as Ray"))
    assert message in refused(*arguments, command="atom-compare")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs of a size, or enlarges the one that is mounted."""
    mount = tmp_path / "disk"
    mount.mkdir()

    def sized(size: str) -> Path:
        remount = "remount," if os.path.ismount(mount) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{remount}size={size}", "tmpfs", str(mount)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not permitted here")
        return mount

    yield sized
    if os.path.ismount(mount):
        # Lazily: MLflow's database is still open in this process.
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def smoke_run(output: Path, data_dir: Path, *more: str) -> Sequence[str]:
    return ["--smoke", "--eval-seeds", "0", "--output", str(output), "--data-dir", str(data_dir), *more]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("size", "file"), [("4k", "settings.json"), ("64k", "mlflow.db")])
def test_full_disk_at_the_start_leaves_nothing(
    small_disk: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], size: str, file: str
) -> None:
    output = small_disk(size) / "out"
    assert distill.main(smoke_run(output, tmp_path / "data")) == 2
    expected = f"StoreError: Cannot write {output / file}: the disk is full; free some space or pass another"
    assert capfd.readouterr().err == f"{expected} --output.\n"
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_disk_that_fills_up_in_the_middle_is_survived(
    small_disk: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], mlflow_uri: str
) -> None:
    output = small_disk("48k") / "out"
    command = smoke_run(output, tmp_path / "data", "--tracking-uri", mlflow_uri)
    assert distill.main(command) == 2
    sentence = capfd.readouterr().err
    assert re.fullmatch(r"StoreError: Cannot write .*: the disk is full; free some space or .*\n", sentence)
    assert not [path for path in output.rglob("*") if "partial" in path.name or ".tmp" in path.name]
    small_disk("20m")
    assert distill.main(command) == 0
    assert len(DistilledSet.load(output / "set").images_NCHW) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ladder", "random:50"], "--ladder: is for --mode search"),
        (["--budget-minutes", "5"], "--budget-minutes: is for --mode search"),
        (
            ["--mode", "search", "--proxies", "random"],
            "--proxies: ranks networks, and --mode search has them climb",
        ),
        (["--mode", "search", "--ladder", "synflow"], "no rung trains a network"),
        (
            ["--mode", "search", "--ladder", "synflow", "whole:2", "--sampler", "random"],
            "--sampler random: the rung synflow says which networks are trained first",
        ),
        (
            ["--mode", "search", "--ladder", "distilled-2:5", "whole:2"],
            "--ladder distilled-2: --set names 0 sets",
        ),
        (["--max-parameters", "10"], "--max-parameters 10: leaves none of the 720 networks"),
        (["--mode", "search", "--reference", "whole"], "--mode search trains no reference"),
    ],
)
def test_searches_that_cannot_be_are_refused_before_any_work(
    refused: Refused, arguments: list[str], message: str
) -> None:
    assert re.search(re.escape(message), refused(*arguments, command="atom-nas"))
