"""Every claim of safety has an attack that is run."""

import html
import os
import pickle

import pytest
import torch
from distilled_samples import SOURCE, make_set

from atom.distilled import DistilledSet
from atom.errors import ArtifactError
from atom.exports import export_dd_ranking, folder_name, import_dc_pt

EVIL = '<img src=x onerror="alert(1)">'
NAMES = (
    "../../etc/passwd",
    EVIL,
    "a|b`c\n# Not a heading",
    '"\n- injected: true\n"',
    "/root",
    "..",
    "\x00\x1b[31m",
    "猫",
)


class Payload:
    """Unpickling it runs a command that leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_the_payload_of_these_tests_does_run_when_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["distilled.safetensors", "preprocess.safetensors", "set.json"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickle_in_place_of_a_file_is_not_run(tmp_path, name, writer):
    path = make_set().save(tmp_path / "set")
    payload = Payload(tmp_path / "trace")
    if writer == "pickle":
        (path / name).write_bytes(pickle.dumps(payload))
    else:
        torch.save({"images": payload}, path / name)
    with pytest.raises(
        ArtifactError, match="is not JSON" if name == "set.json" else "is not a safetensors file"
    ):
        DistilledSet.load(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickle_in_a_dc_file_is_not_run(tmp_path, writer):
    content = {"data": [[Payload(tmp_path / "trace"), torch.zeros(8)]]}
    path = tmp_path / "res.pt"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    distilled = make_set()
    with pytest.raises(ArtifactError, match=r"res\.pt cannot be read as plain tensors"):
        import_dc_pt(path, preprocess=distilled.preprocess, class_names=distilled.class_names, method="dm")
    assert not (tmp_path / "trace").exists()


def test_class_names_never_become_paths(tmp_path):
    distilled = make_set(num_classes=len(NAMES), class_names=NAMES)
    distilled.save(tmp_path / "inner" / "set")
    export_dd_ranking(distilled, tmp_path / "inner" / "ranking")
    assert [p.name for p in tmp_path.iterdir()] == ["inner"]
    assert sorted(p.name for p in (tmp_path / "inner").iterdir()) == ["ranking", "set"]
    folders = sorted(p.name for p in (tmp_path / "inner" / "ranking" / "images").iterdir())
    assert folders[0] == "00000_etc-passwd"
    assert len(folders) == len(NAMES)
    assert all(
        folder_name(name).replace("-", "").isascii() and "." not in folder_name(name) for name in NAMES
    )


def test_hostile_names_survive_the_round_trip(tmp_path):
    path = make_set(num_classes=len(NAMES), class_names=NAMES).save(tmp_path / "set")
    assert DistilledSet.load(path).class_names == NAMES


def test_names_in_the_card_are_data_not_markup(tmp_path):
    import yaml

    source = SOURCE | {
        "title": EVIL,
        "name": NAMES[2],
        "licence": EVIL,
        "citation": EVIL,
        "homepage": f"x>{EVIL}",
    }
    results = [{"method": EVIL, "network": "a|b\n\n# Not a heading", "mean": 1.0, "std": 0.1, EVIL: 1}]
    distilled = make_set(
        num_classes=len(NAMES), class_names=NAMES, source=source, results=results, method=EVIL,
        settings={EVIL: "`|` <b>"}, git_commit=EVIL, versions={EVIL: EVIL},
    )  # fmt: skip
    card = (distilled.save(tmp_path / "set") / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    parsed = yaml.safe_load(header)
    names = parsed["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert tuple(names.values()) == NAMES
    assert set(parsed) >= {"license", "tags"}
    assert "injected" not in parsed
    outside_code = "".join(part for i, part in enumerate(body.replace(r"\`", "").split("`")) if i % 2 == 0)
    assert EVIL not in outside_code
    assert html.escape(EVIL, quote=False) in outside_code
    assert "\n# Not a heading" not in body
    table_rows = [line for line in body.splitlines() if "Not a heading" in line and line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table_rows}) <= 2


def test_safetensors_header_that_promises_too_much_is_refused(tmp_path):
    path = make_set().save(tmp_path / "set")
    header = b'{"images":{"dtype":"F32","shape":[1000000000,3,8,6],"data_offsets":[0,576000000000]}}'
    (path / "distilled.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ArtifactError, match="is not a safetensors file"):
        DistilledSet.load(path)
