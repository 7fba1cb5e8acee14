import numpy as np
import pytest
import torch
from distilled_samples import RESULTS, make_set
from PIL import Image

from atom.errors import ArtifactError, StoreError
from atom.exports import export_dc_pt, export_dd_ranking, export_mtt_pt, import_dc_pt


def test_dc_file_has_the_form_of_the_family(tmp_path):
    distilled = make_set(factor=2)
    path = export_dc_pt(distilled, tmp_path / "res_atom.pt")
    content = torch.load(path, weights_only=True)
    assert set(content) == {"data", "accs_all_exps"}
    [[images, labels]] = content["data"]
    assert torch.equal(images, distilled.decode()[0])
    assert torch.equal(labels, distilled.decode()[1])
    assert content["accs_all_exps"] == {"convnet": [0.315]}


def test_dc_file_takes_single_accuracies_where_they_were_kept(tmp_path):
    distilled = make_set(results=[RESULTS[0] | {"accuracies": [30.0, 33.0]}])
    content = torch.load(export_dc_pt(distilled, tmp_path / "res.pt"), weights_only=True)
    assert content["accs_all_exps"] == {"convnet": [0.3, 0.33]}


def test_dc_file_of_a_slice_holds_only_its_own_values(tmp_path):
    big = torch.randn(8000, 3, 8, 6)
    path = export_dc_pt(make_set(images_NCHW=big[:8]), tmp_path / "res.pt")
    assert path.stat().st_size < 20_000


def test_exported_dc_file_is_imported_as_the_same_images(tmp_path):
    distilled = make_set()
    path = export_dc_pt(distilled, tmp_path / "res.pt")
    again = import_dc_pt(
        path,
        preprocess=distilled.preprocess,
        class_names=distilled.class_names,
        method="dm",
        settings={"a": 1},
    )
    assert torch.equal(again.images_NCHW, distilled.images_NCHW)
    assert torch.equal(again.labels, distilled.labels)
    assert (again.ipc, again.method, again.settings) == (2, "dm", {"a": 1})


def test_import_sorts_by_class_and_takes_the_experiment_asked_for(tmp_path):
    distilled = make_set()
    first = [torch.zeros(8, 3, 8, 6), torch.arange(4).repeat(2)]
    second = [torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 8, 6), torch.arange(4).repeat(2)]
    torch.save({"data": [first, second], "accs_all_exps": {}}, tmp_path / "res.pt")

    def read(experiment):
        return import_dc_pt(
            tmp_path / "res.pt", preprocess=distilled.preprocess, class_names=distilled.class_names,
            method="dm", experiment=experiment,
        )  # fmt: skip

    assert read(-1).images_NCHW[:, 0, 0, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert read(-1).labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert read(0).images_NCHW.abs().sum() == 0
    with pytest.raises(ArtifactError, match="experiment 2, expected one of the file's 2; pass experiment=-1"):
        read(2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1], "a list without a list 'data'"),
        ({"data": []}, "a dict without a list 'data'"),
        ({"data": [[torch.zeros(8, 3, 8, 6)]]}, "an entry of type list, expected two tensors"),
        ({"data": [["a", "b"]]}, "expected two tensors"),
        ({"data": [[torch.zeros(8, 3, 8, 6), torch.zeros(7)]]}, "expected one label an image"),
        ({"data": [[torch.zeros(8, 3, 8, 6), torch.zeros(8)]]}, "label 0 of image 2, expected 1"),
        ({"data": [[torch.zeros(7, 3, 8, 6), torch.zeros(7)]]}, "expected 4 images"),
        (
            {"data": [[torch.full((8, 3, 8, 6), torch.nan), torch.arange(8) // 2]]},
            "are NaN or infinite",
        ),
    ],
)
def test_dc_file_of_another_form_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "res.pt")
    distilled = make_set()
    with pytest.raises(ArtifactError, match=words):
        import_dc_pt(
            tmp_path / "res.pt",
            preprocess=distilled.preprocess,
            class_names=distilled.class_names,
            method="dm",
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"res\.pt cannot be read as plain tensors \(No such file or directory\), expected \{'data'"),
        (b"", r"\(it is damaged\)"),
        (b"not a file of torch", r"\(it holds something else\)"),
        ("cut", r"\(it is damaged\)"),
    ],
)
def test_dc_file_that_is_missing_or_broken_is_refused(tmp_path, content, words):
    if content == "cut":
        content = export_dc_pt(make_set(), tmp_path / "res.pt").read_bytes()[:-300]
    if content is not None:
        (tmp_path / "res.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        import_dc_pt(tmp_path / "res.pt", preprocess=make_set().preprocess, class_names=("a",), method="dm")


def test_dd_ranking_export_holds_tensors_and_pictures_in_label_order(tmp_path):
    distilled = make_set(num_classes=11, ipc=1, class_names=tuple(f"class/{10 - i}" for i in range(11)))
    path = export_dd_ranking(distilled, tmp_path / "ranking")
    assert torch.equal(torch.load(path / "images.pt", weights_only=True), distilled.images_NCHW)
    assert torch.equal(torch.load(path / "labels.pt", weights_only=True), distilled.labels)
    assert torch.load(path / "lr.pt", weights_only=True).item() == pytest.approx(0.01)
    folders = sorted(p.name for p in (path / "images").iterdir())
    assert folders == [f"{i:05d}_class-{10 - i}" for i in range(11)]
    with Image.open(path / "images" / "00003_class-7" / "00003.png") as picture:
        expected = (distilled.pixels()[3] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(picture), expected)


def test_dd_ranking_export_gives_soft_labels_where_there_are_some(tmp_path):
    soft = torch.rand(8, 4).softmax(1)
    path = export_dd_ranking(make_set(soft_labels=soft, factor=2), tmp_path / "ranking")
    labels = torch.load(path / "labels.pt", weights_only=True)
    assert torch.equal(labels, soft.repeat_interleave(4, 0))


def test_dd_ranking_export_replaces_an_earlier_one_only(tmp_path):
    export_dd_ranking(make_set(ipc=3), tmp_path / "ranking")
    export_dd_ranking(make_set(ipc=1), tmp_path / "ranking")
    assert len(list((tmp_path / "ranking").rglob("*.png"))) == 4
    (tmp_path / "ranking" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds 'notes.txt'"):
        export_dd_ranking(make_set(ipc=1), tmp_path / "ranking")


def test_unsound_set_is_not_exported(tmp_path):
    broken = make_set(images_NCHW=torch.full((8, 3, 8, 6), torch.nan))
    with pytest.raises(ArtifactError):
        export_dc_pt(broken, tmp_path / "res.pt")
    with pytest.raises(ArtifactError):
        export_dd_ranking(broken, tmp_path / "ranking")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("soft", [True, False])
def test_files_of_mtt_and_datm_come_back_the_same(tmp_path, soft):
    labels = torch.rand(8, 4).softmax(1) if soft else None
    if labels is not None:
        labels[0] = torch.tensor([1.0, 0, 0, 0])
    distilled = make_set(soft_labels=labels)
    folder = export_mtt_pt(distilled, tmp_path / "mtt")
    assert torch.load(folder / "labels_best.pt", weights_only=True).isfinite().all()
    again = import_dc_pt(
        folder / "images_best.pt",
        preprocess=distilled.preprocess,
        class_names=distilled.class_names,
        method="datm",
    )
    assert torch.equal(again.images_NCHW, distilled.images_NCHW)
    assert torch.equal(again.labels, distilled.labels)
    if soft:
        torch.testing.assert_close(again.soft_labels, distilled.soft_labels)
    else:
        assert again.soft_labels is None


def test_dd_ranking_gets_the_step_size_that_the_set_carries(tmp_path):
    rates = [
        torch.load(
            export_dd_ranking(made, tmp_path / str(number), **asked) / "lr.pt", weights_only=True
        ).item()
        for number, (made, asked) in enumerate(
            [(make_set(), {}), (make_set(training={"lr_net": 0.03}), {}), (make_set(), {"lr_net": 0.5})]
        )
    ]
    assert rates == pytest.approx([0.01, 0.03, 0.5])


def test_dd_ranking_is_refused_steps_of_their_own_unless_one_size_is_given(tmp_path):
    ordered = make_set(training={"epochs": 2, "step_sizes": [0.1, 0.25]})
    with pytest.raises(ArtifactError, match=r"a set with 2 steps .*, expected one step size.*; pass lr_net"):
        export_dd_ranking(ordered, tmp_path / "ranking")
    assert not (tmp_path / "ranking").exists()
    path = export_dd_ranking(ordered, tmp_path / "ranking", lr_net=0.2)
    assert torch.load(path / "lr.pt", weights_only=True).item() == pytest.approx(0.2)


def test_dc_file_of_soft_labels_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"a set with soft labels, expected class labels.*export_dd_ranking"
    ):
        export_dc_pt(make_set(soft_labels=torch.rand(8, 4).softmax(1)), tmp_path / "res.pt")
    assert list(tmp_path.iterdir()) == []


def imported(path, **changes):
    made = make_set()
    return import_dc_pt(
        path, **{"preprocess": made.preprocess, "class_names": made.class_names, "method": "x", **changes}
    )


def test_images_of_idc_and_ncfm_are_pixels_and_are_preprocessed(tmp_path):
    pixels = torch.rand(8, 3, 8, 6)
    torch.save([pixels, torch.arange(4).repeat_interleave(2)], tmp_path / "data_best.pt")
    distilled = imported(tmp_path / "data_best.pt", factor=2)
    assert torch.equal(distilled.images_NCHW, make_set().preprocess.apply(pixels))
    assert (distilled.ipc, distilled.factor, distilled.soft_labels) == (2, 2, None)
    with pytest.raises(ArtifactError, match=r"images of 8x6 pixels, expected a size that factor 4 divides"):
        imported(tmp_path / "data_best.pt", factor=4)


def test_images_of_mtt_have_their_labels_beside_them(tmp_path):
    images = torch.randn(8, 3, 8, 6)
    torch.save(images, tmp_path / "images_best.pt")
    with pytest.raises(ArtifactError, match=r"without labels, expected labels_best\.pt beside"):
        imported(tmp_path / "images_best.pt")
    torch.save(torch.arange(4).repeat(2), tmp_path / "labels_best.pt")
    distilled = imported(tmp_path / "images_best.pt")
    assert torch.equal(distilled.images_NCHW, images[[0, 4, 1, 5, 2, 6, 3, 7]])
    torch.save([1], tmp_path / "labels_best.pt")
    with pytest.raises(ArtifactError, match=r"labels_best\.pt: a list, expected a tensor of labels"):
        imported(tmp_path / "images_best.pt")
    torch.save(images, tmp_path / "mine.pt")
    with pytest.raises(ArtifactError, match=r"expected labels_\*\.pt beside images_\*\.pt"):
        imported(tmp_path / "mine.pt")


def test_logits_of_datm_become_soft_labels_of_images_that_lie_class_by_class(tmp_path):
    images, logits = torch.randn(8, 3, 8, 6), torch.randn(8, 4)
    torch.save(images, tmp_path / "images_5000.pt")
    torch.save(logits, tmp_path / "labels_5000.pt")
    distilled = imported(tmp_path / "images_5000.pt")
    assert torch.equal(distilled.images_NCHW, images)
    assert torch.equal(distilled.soft_labels, logits.softmax(1))
    assert distilled.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
