import re
from pathlib import Path

import pytest
from distilled_samples import make_set

from atom.artifact import FILES

DOC = Path(__file__).parents[2] / "docs" / "artifact.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)


def needs_datasets(block):
    return "import datasets" in block


def test_code_of_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    make_set(factor=2).save(tmp_path / "cifar10-ipc2")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in BLOCKS:
        if not needs_datasets(block):
            exec(compile(block, str(DOC), "exec"), names)
    assert names["predicted"].shape == (5,)
    assert names["theirs"].images_NCHW.shape == (32, 3, 8, 6)


@pytest.mark.slow
def test_code_of_the_page_for_datasets_runs(tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets", reason="the `datasets` library is a test-only dependency")
    make_set().save(tmp_path / "cifar10-ipc2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (block,) = filter(needs_datasets, BLOCKS)
    exec(block, {})
    assert capsys.readouterr().out == "['class 0', 'class 1', 'class 2', 'class 3'] (6, 8)\n"


def test_page_names_every_file_of_the_format():
    text = DOC.read_text()
    assert [name for name in FILES if f"`{name}`" not in text] == []
