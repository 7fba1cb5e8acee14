import subprocess
import sys

import numpy as np
import pytest

from atom.data import known_specs, load
from atom.errors import ConfigError, DataError


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashionmnist", "svhn", "tinyimagenet"])
def test_missing_files_without_download_name_what_was_wanted_and_where(tmp_path, name):
    with pytest.raises(DataError, match=rf"^{name}: .*{tmp_path}"):
        load(name, data_dir=tmp_path, allow_download=False)
    with pytest.raises(DataError, match="elsewhere"):  # a path in the spec is never downloaded to
        load(f"{name}:{tmp_path}/elsewhere", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_digits_come_with_a_fixed_stratified_split(tmp_path):
    data = load("digits", data_dir=tmp_path)
    assert data.train.images.shape == (1442, 1, 8, 8)
    assert data.test.images.shape == (355, 1, 8, 8)
    counts = data.train.per_class_counts() + data.test.per_class_counts()
    assert data.test.per_class_counts().tolist() == [count // 5 for count in counts]
    assert data.train.fingerprint == load("digits", data_dir=tmp_path).train.fingerprint
    assert list(tmp_path.iterdir()) == []


def test_digits_scale_sixteen_to_255_by_rounding(tmp_path):
    from sklearn.datasets import load_digits

    first = load_digits().images[0]
    expected = np.round(first * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(load("digits", data_dir=tmp_path).train.images[0, 0], expected)


def test_unknown_dataset_lists_the_known_and_suggests_the_closest(tmp_path):
    with pytest.raises(ConfigError, match=r"known are digits, .*npz:PATH\. Did you mean 'cifar10'\?"):
        load("cifar-10", data_dir=tmp_path)


def test_bare_directory_gets_a_hint(tmp_path):
    with pytest.raises(ConfigError, match="pass folder:/"):
        load(str(tmp_path), data_dir=tmp_path)


@pytest.mark.parametrize("spec", ["folder", "parquet:", "digits:/x", "cifar10:", ""])
def test_spec_with_a_path_too_many_or_too_few_is_refused(tmp_path, spec):
    with pytest.raises(ConfigError, match="--dataset"):
        load(spec, data_dir=tmp_path)


@pytest.mark.parametrize("size", [0, -1, 100_000])
def test_image_size_out_of_range_is_refused(tmp_path, size):
    with pytest.raises(ConfigError, match=f"--image-size {size} is out of range"):
        load("digits", data_dir=tmp_path, image_size=size)


def test_known_specs_cover_the_documented_sources():
    assert len(known_specs()) == 19
    assert known_specs()[0] == "digits"


def test_data_loads_without_torchvision_ray_and_mlflow(tmp_path):
    program = f"""
import sys
for name in ("torchvision", "ray", "mlflow", "tyro", "rich"):
    sys.modules[name] = None
import atom.data
assert "torch" not in sys.modules and "pyarrow" not in sys.modules and "sklearn" not in sys.modules
from pathlib import Path
print(len(atom.data.load("digits", data_dir=Path({str(tmp_path)!r})).train))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "1442", done.stderr
