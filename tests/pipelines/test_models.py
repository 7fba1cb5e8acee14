"""Networks as MLflow's models: what is in the directory, what it answers, and which version an alias names."""

import ast
import base64
import io
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_runs import environment, wait_for
from mlflow import MlflowClient, pyfunc
from mlflow.exceptions import MlflowException
from PIL import Image
from torch import nn

from apps.learner.serving import probabilities
from apps.served import Served, torchscript
from atom import nets
from atom.data.decode import Entry, decode_one
from atom.preprocess import Preprocess
from pipelines.tracking import Model, Registered, Tracker, point_current, replace_models
from pipelines.tracking import models as models_module
from pipelines.tracking.backend import open_client
from pipelines.tracking.models import save_model

CLASSES = ("cat", "no", "7", "größe")
FIRST, SECOND = (Registered("shop", owner="one", version=name) for name in ("1-a", "2-b"))


def network(channels: int, height: int, width: int) -> tuple[nn.Module, Preprocess]:
    shape: dict[str, Any] = {"channels": channels, "image_size": (height, width)}
    net = nets.build("convnet-w8-d2", **shape, num_classes=len(CLASSES), seed=0).eval()
    return net, Preprocess.fit(images(30, channels, height, width), zca=True)


def images(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, *shape), dtype=np.uint8)


def model(channels: int = 1, height: int = 8, width: int = 8, *, resize: int | None = None) -> Model:
    net, preprocess = network(channels, height, width)
    shape = (channels, height, width)
    return Model(torchscript(Served(net, preprocess).eval(), shape), CLASSES, shape, resize)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> str:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return base64.b64encode(content.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of grey images."""
    path = tmp_path_factory.mktemp("models") / "grey"
    save_model(model(), path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> pyfunc.PyFuncModel:
    return pyfunc.load_model(str(folder))


def test_directory_has_neither_pickles_nor_places_of_this_machine(folder: Path) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == [
        "MLmodel",
        "artifacts/about.json",
        "artifacts/network.pt",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "served_network.py",
    ]
    told = (folder / "MLmodel").read_text()
    assert str(Path(models_module.__file__).parent) not in told
    assert "/tmp" not in told
    assert "atom" not in (folder / "requirements.txt").read_text()


def test_code_of_a_model_imports_nothing_of_this_project(folder: Path) -> None:
    tree = ast.parse((folder / "served_network.py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {name.partition(".")[0] for name in found if name} & {"atom", "apps", "pipelines"}


def test_encoded_images_and_pixels_get_the_probabilities_of_the_network(loaded: pyfunc.PyFuncModel) -> None:
    given_NCHW = images(3, 1, 8, 8)
    expected_NK = probabilities(*network(1, 8, 8), given_NCHW)
    as_text = pd.DataFrame({"image": [encoded(Image.fromarray(one[0])) for one in given_NCHW]})
    as_pixels = pd.DataFrame({"pixels": given_NCHW.tolist()})
    for asked in (as_text, as_pixels):
        answers = loaded.predict(asked)
        assert answers["class"].tolist() == [CLASSES[k] for k in expected_NK.argmax(axis=1)]
        assert [tuple(one) for one in answers["probabilities"]] == [CLASSES] * 3
        found_NK = [list(one.values()) for one in answers["probabilities"]]
        np.testing.assert_allclose(found_NK, expected_NK, atol=1e-5)


def turned() -> str:
    """On its side, by a tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(images(8, 9, 3)), "JPEG", exif=exif)


PICTURES = {
    "grey": lambda: encoded(Image.fromarray(images(7, 5))),
    "one bit": lambda: encoded(Image.fromarray(images(7, 5)).convert("1")),
    "colour": lambda: encoded(Image.fromarray(images(7, 5, 3))),
    "transparent": lambda: encoded(Image.fromarray(images(7, 5, 4))),
    "transparent grey": lambda: encoded(Image.fromarray(images(7, 5, 2))),
    "palette": lambda: encoded(Image.fromarray(images(7, 5, 3)).quantize(8), "GIF"),
    "cmyk": lambda: encoded(Image.fromarray(images(7, 5, 4), mode=None).convert("CMYK"), "TIFF"),
    "turned": turned,
}


@pytest.mark.parametrize("name", PICTURES)
def test_images_are_read_as_those_that_the_network_learned_from(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.tracking.served_network import ServedNetwork

    text = PICTURES[name]()
    for resize in (None, 6):
        expected_CHW, _ = decode_one(Entry("here", 0, base64.b64decode(text)), image_size=resize)
        served = ServedNetwork()
        served.shape, served.resize = expected_CHW.shape, resize
        assert np.array_equal(served._image({"image": text}, 0), expected_CHW)


def bomb() -> str:
    return encoded(Image.new("L", (3000, 3000)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": "aGVsbG8="},
            r"Row 0: received no image \(cannot identify image file\), expected an encoded",
        ),
        ({"image": "no base64"}, r"Row 0: received no image \("),
        (
            {"image": encoded(Image.new("L", (9, 8)))},
            r"received an image of 9x8 pixels, expected 8x8 \(width x",
        ),
        ({"image": bomb()}, r"received an image of 3000x3000 pixels, expected 8x8"),
        ({"image": encoded(Image.new("I;16", (8, 8)))}, r"received an image of mode I;16, expected 8 bits"),
        (
            {"image": encoded(Image.fromarray(images(8, 8, 3)))},
            r"received \[3, 8, 8\] values, expected \[1, 8, 8\]",
        ),
        ({"pixels": [[[1, 2]]]}, r"received \[1, 1, 2\] values, expected \[1, 8, 8\], channels first"),
        ({"pixels": [[[256] * 8] * 8]}, r"expected \[C\]\[H\]\[W\] of whole numbers from 0 to 255"),
        (
            {"pixels": [[[1], [1, 2]]]},
            r"received pixels that are no array, expected \[C\]\[H\]\[W\] of numbers",
        ),
        ({"image": None}, r"Row 0: received 0 images, expected either image, encoded in base64, or pixels"),
    ],
)
def test_what_is_no_image_of_the_network_is_one_sentence(
    row: dict[str, Any], message: str, loaded: pyfunc.PyFuncModel
) -> None:
    with pytest.raises(MlflowException, match=message):
        loaded.predict(pd.DataFrame([row]))


def test_network_whose_way_depends_on_the_images_is_not_traced() -> None:
    class Wilful(nn.Module):
        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            sums = images_NCHW.flatten(1)[:, :4]
            return sums if len(images_NCHW) == 2 else -sums

    served = Served(Wilful(), Preprocess(torch.zeros(1), torch.ones(1))).eval()
    with pytest.raises(ValueError, match="answers otherwise than the network itself"):
        torchscript(served, (1, 8, 8))


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return open_client(mlflow_uri)


Log = Callable[..., str]


@pytest.fixture
def log(mlflow_uri: str) -> Log:
    """Logs a model in a run of its own; the run's id."""

    def call(at: Registered, *, use: bool = True) -> str:
        options: dict[str, Any] = {"tracking_uri": mlflow_uri, "experiment": None, "system_metrics": False}
        with Tracker.start(**options, command="learner-shop", run_name=at.version, params={}) as tracker:
            tracker.log_model(model(), at)
            if use:
                tracker.use_model(at)
        return tracker.run_id

    return call


def aliases(client: MlflowClient) -> dict[str, str]:
    """Version of the registry by alias."""
    return {name: str(version) for name, version in client.get_registered_model("shop").aliases.items()}


def test_the_newest_version_is_the_candidate_and_current_moves_and_moves_back(
    log: Log, client: MlflowClient, mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = log(FIRST)
    log(SECOND, use=False)
    assert aliases(client) == {"candidate": "2", "current": "1"}
    log(SECOND)
    assert aliases(client) == {"candidate": "2", "current": "2"}
    point_current(mlflow_uri, FIRST)
    assert aliases(client) == {"candidate": "2", "current": "1"}
    assert client.get_model_version("shop", "1").run_id == run_id
    assert len(client.search_model_versions("name = 'shop'")) == 2
    assert not [record for record in caplog.records if record.name.startswith("pipelines")]
    loaded = pyfunc.load_model(f"{client.get_model_version('shop', '1').source}")
    assert loaded.predict(pd.DataFrame({"pixels": images(1, 1, 8, 8).tolist()}))["class"][0] in CLASSES


def test_a_name_of_somebody_else_and_a_missing_version_are_a_warning(
    log: Log, client: MlflowClient, mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    log(FIRST)
    log(Registered("shop", owner="another", version="1-a"), use=False)
    assert "the name shop is that of another registered model; rename or delete that one" in caplog.text
    point_current(mlflow_uri, SECOND)
    assert "the alias current stays: model shop has no version 2-b there" in caplog.text
    assert aliases(client) == {"candidate": "1", "current": "1"}
    assert len(client.search_model_versions("name = 'shop'")) == 1


def test_deleted_versions_leave_no_file_and_another_one_becomes_current(
    log: Log, client: MlflowClient, mlflow_uri: str, tmp_path: Path
) -> None:
    log(FIRST)
    log(SECOND)
    third = Registered("shop", owner="one", version="3-c")
    options = {"experiment": "learner-shop", "run_name": "version 3"}
    replace_models(mlflow_uri, [FIRST, SECOND], model=model(), at=third, **options)
    (left,) = client.search_model_versions("name = 'shop'")
    assert aliases(client) == {"candidate": "3", "current": "3"}
    assert left.tags["atom.version"] == "3-c"
    assert left.run_id
    assert client.get_run(left.run_id).info.status == "FINISHED"
    assert len(list(tmp_path.rglob("network.pt"))) == 1


@pytest.mark.parametrize("where", ["nobody listens", "no such file"])
def test_where_mlflow_is_not_the_alias_stays_with_a_warning(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    point_current(uri if where == "nobody listens" else f"sqlite:///{tmp_path}/none.db", FIRST)
    (record,) = caplog.records
    assert "the alias current stays" in record.getMessage()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_mlflow_serves_the_current_version(log: Log, mlflow_uri: str, tmp_path: Path) -> None:
    log(FIRST)
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", "models:/shop@current", "--env-manager", "local"]
    with (tmp_path / "log.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            env=environment(MLFLOW_TRACKING_URI=mlflow_uri),
            cwd=tmp_path,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def lives() -> bool:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        try:
            return urllib.request.urlopen(f"{address}/ping", timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_for(lives, limit_s=300)
        given_CHW = images(1, 1, 8, 8)[0]
        rows = [{"image": encoded(Image.fromarray(given_CHW[0]))}], [{"pixels": given_CHW.tolist()}]
        for asked in rows:
            request = urllib.request.Request(
                f"{address}/invocations",
                json.dumps({"dataframe_records": asked}).encode(),
                {"Content-Type": "application/json"},
            )
            (answer,) = json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
            assert answer["class"] in CLASSES
            assert sum(answer["probabilities"].values()) == pytest.approx(1)
    finally:
        # Its own group: the server is a child of the command.
        os.killpg(process.pid, 9)
        process.wait(30)
