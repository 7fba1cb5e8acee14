import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from distilled_samples import make_set
from PIL import Image


def test_parquet_holds_the_clipped_pictures_losslessly(tmp_path):
    distilled = make_set(factor=2)
    table = pq.read_table(distilled.save(tmp_path / "set") / "data" / "train-00000-of-00001.parquet")
    assert table["label"].to_pylist() == distilled.decode()[1].tolist()
    expected = (distilled.pixels() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for row, pixels in zip(table["image"].to_pylist(), expected, strict=True):
        with Image.open(io.BytesIO(row["bytes"])) as picture:
            assert picture.format == "PNG"
            assert np.array_equal(np.asarray(picture), pixels)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(distilled.class_names), "_type": "ClassLabel"}
    assert features["image"] == {"_type": "Image"}


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_pictures_have_a_mode_that_fits_the_channels(tmp_path, channels, mode):
    table = pq.read_table(
        make_set(channels=channels).save(tmp_path / "set") / "data" / "train-00000-of-00001.parquet"
    )
    with Image.open(io.BytesIO(table["image"][0]["bytes"].as_py())) as picture:
        assert (picture.mode, picture.size) == (mode, (6, 8))


@pytest.mark.slow
def test_load_dataset_opens_the_directory_offline(tmp_path):
    pytest.importorskip("datasets", reason="the `datasets` library is a test-only dependency")
    distilled = make_set(class_names=("cat", '"dog"', "猫", "../x"), factor=2)
    path = distilled.save(tmp_path / "set")
    # In a process of its own: `datasets` reads its environment when imported.
    code = """if True:
        import datasets, json, sys
        splits = datasets.load_dataset(sys.argv[1])
        train = splits["train"]
        image = train[0]["image"]
        names = train.features["label"].names
        print(json.dumps([list(splits), names, list(train["label"]), image.size, image.mode]))
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_DATASETS_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    splits, names, labels, size, mode = json.loads(done.stdout.splitlines()[-1])
    assert splits == ["train"]
    assert names == list(distilled.class_names)
    assert labels == distilled.decode()[1].tolist()
    assert (size, mode) == ([6, 8], "RGB")
