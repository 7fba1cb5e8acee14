import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from atom.data import load
from atom.data.labelled import load_labelled
from atom.errors import ConfigError, DataError


def write_image(path, *, seed=0, size=(6, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "My Pets"
    for part, count in (("train", 3), ("test", 2)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(root / part / name / f"{i}.png", seed=10 * k + i)
    return root


def load_folder(root, **kwargs):
    return load(f"folder:{root}", data_dir=root.parent / "data", **kwargs)


def test_folder_gives_pixels_labels_and_class_names(root):
    pixels = write_image(root / "train" / "dog" / "9.png", seed=99)
    data = load_folder(root)
    assert data.name == "my-pets"
    assert data.source.title == "my-pets (folder)"
    assert data.train.class_names == ("cat", "dog")
    assert data.train.images.shape == (7, 3, 6, 6)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(data.train.images[6], pixels.transpose(2, 0, 1))


def test_all_grey_images_keep_one_channel(root):
    for file in root.rglob("*.png"):
        write_image(file, mode="L")
    assert load_folder(root).train.images.shape == (6, 1, 6, 6)


def test_one_coloured_image_anywhere_makes_everything_rgb(root):
    for file in root.rglob("*.png"):
        write_image(file, mode="L")
    grey = write_image(root / "train" / "cat" / "0.png", mode="L", seed=5)
    colour = write_image(root / "test" / "dog" / "1.png", seed=6)
    data = load_folder(root)
    assert data.train.images.shape[1] == data.test.images.shape[1] == 3
    np.testing.assert_array_equal(data.train.images[0], np.stack([grey] * 3))
    np.testing.assert_array_equal(data.test.images[3], colour.transpose(2, 0, 1))


def test_colour_after_grey_within_a_part_widens_the_earlier_ones(root):
    grey = write_image(root / "train" / "cat" / "0.png", mode="L", seed=5)
    data = load_folder(root)
    np.testing.assert_array_equal(data.train.images[0], np.stack([grey] * 3))


@pytest.mark.parametrize("part", ["val", "validation"])
def test_validation_part_stands_in_for_a_missing_test_part(root, part):
    (root / "test").rename(root / part)
    assert len(load_folder(root).test) == 4


def test_hidden_files_are_ignored(root):
    (root / "train" / ".DS_Store").write_text("x")
    (root / "train" / "cat" / ".hidden").write_text("x")
    assert len(load_folder(root).train) == 6


def test_image_size_resizes_the_shorter_side_and_crops_the_centre(root):
    wide = Image.fromarray(write_image(root / "train" / "cat" / "0.png", size=(24, 8)))
    data = load_folder(root, image_size=4)
    assert data.train.images.shape == (6, 3, 4, 4)
    expected = np.asarray(wide.resize((12, 4), Image.Resampling.BILINEAR).crop((4, 0, 8, 4)))
    np.testing.assert_allclose(data.train.images[0].transpose(1, 2, 0), expected, atol=1)


def test_image_of_another_size_is_named_with_both_sizes(root):
    write_image(root / "train" / "dog" / "1.png", size=(7, 5))
    with pytest.raises(DataError, match=r"dog/1\.png: the image is 7x5 .* expected 6x6 like .*--image-size"):
        load_folder(root, skip_broken=True)


def test_images_that_are_not_square_are_refused_without_an_image_size(root):
    for file in root.rglob("*.png"):
        write_image(file, size=(6, 4))
    with pytest.raises(DataError, match=r"cat/0\.png: the image is 6x4 .*--image-size"):
        load_folder(root)


def test_corrupt_jpeg_is_named(root):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(whole, "JPEG")
    broken = root / "train" / "cat" / "broken.jpg"
    broken.write_bytes(whole.getvalue()[:-40])
    with pytest.raises(DataError, match=r"train/cat/broken\.jpg: not an image Pillow can read"):
        load_folder(root)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"])
def test_file_that_is_no_image_is_named(root, content):
    (root / "test" / "dog" / "notes.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"test/dog/notes\.txt: not an image"):
        load_folder(root)


def test_skip_broken_lists_what_it_left_out(root):
    (root / "train" / "cat" / "1.png").write_bytes(b"broken")
    (root / "train" / "readme.txt").write_text("x")
    data = load_folder(root, skip_broken=True)
    assert data.train.per_class_counts().tolist() == [2, 3]
    assert [message.split(": ")[0].rsplit("/", 2)[1:] for message in data.skipped] == [
        ["train", "readme.txt"],
        ["cat", "1.png"],
    ]
    assert load_folder(root, skip_broken=True).skipped == data.skipped  # from the cache


def test_class_left_empty_by_skipping_is_still_an_error(root):
    for file in (root / "test" / "dog").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="class 'dog' has no test images left after skipping"):
        load_folder(root, skip_broken=True)


def test_part_of_broken_images_only_is_still_an_error(root):
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="class 'cat' has no train images left"):
        load_folder(root, skip_broken=True)


def test_stray_file_beside_the_classes_is_named(root):
    (root / "train" / "readme.txt").write_text("x")
    with pytest.raises(DataError, match=r"train/readme\.txt: a file where class directories are expected"):
        load_folder(root)


@pytest.mark.parametrize("part", ["train", "test", None])
def test_class_whose_name_is_no_text_is_named(root, part):
    folder = root / "train" if part is None else root
    try:
        os.mkdir(os.fsencode(root / (part or "train")) + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    read = load_folder if part else lambda to: load_labelled(f"folder:{to}", data_dir=to.parent)
    with pytest.raises(
        DataError, match=r"class directory 'caf\\udce9' is not UTF-8.*; rename it\."
    ) as caught:
        read(folder)
    str(caught.value).encode()


def test_class_may_be_called_train(tmp_path):
    for name in ("train", "ship"):
        write_image(tmp_path / "toys" / name / "0.png")
    assert load_labelled(f"folder:{tmp_path / 'toys'}", data_dir=tmp_path).images.class_names == (
        "ship",
        "train",
    )


def test_directory_inside_a_class_is_named(root):
    (root / "train" / "cat" / "more").mkdir()
    with pytest.raises(DataError, match="cat/more: a directory where images are expected"):
        load_folder(root)


def test_test_class_without_training_images_is_named(root):
    write_image(root / "test" / "fox" / "0.png")
    with pytest.raises(DataError, match="test/fox: class 'fox' is not among the 2 classes"):
        load_folder(root)


def test_empty_class_is_named(root):
    (root / "train" / "ant").mkdir()
    with pytest.raises(DataError, match="train/ant: the directory is empty"):
        load_folder(root)


def test_training_class_without_a_test_directory_is_named(root):
    write_image(root / "train" / "fox" / "0.png")
    with pytest.raises(DataError, match="test/fox: the directory does not exist"):
        load_folder(root)


def test_missing_directory_and_missing_part_are_named(root):
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_folder(root.parent / "nowhere")
    (root / "test").rename(root / "tests")
    with pytest.raises(DataError, match="has no directory test/ or val/ or validation/"):
        load_folder(root)


def test_sixteen_bit_images_are_refused_rather_than_scaled_by_guess(root):
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(root / "train" / "cat" / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: the image has mode I;16, more than 8 bits"):
        load_folder(root)


def test_palette_and_alpha_become_rgb_and_bilevel_becomes_grey(root):
    colour = Image.fromarray(write_image(root / "x.png"))
    (root / "x.png").unlink()
    colour.quantize(4).save(root / "train" / "cat" / "0.png")
    colour.convert("RGBA").save(root / "train" / "cat" / "1.png")
    colour.convert("1").save(root / "train" / "cat" / "2.png")
    images = load_folder(root).train.images
    np.testing.assert_array_equal(images[0], np.asarray(colour.quantize(4).convert("RGB")).transpose(2, 0, 1))
    np.testing.assert_array_equal(images[1], np.asarray(colour).transpose(2, 0, 1))
    assert set(np.unique(images[2])) <= {0, 255}


def test_orientation_tag_is_obeyed(root):
    pixels = write_image(root / "train" / "cat" / "0.png", seed=3)
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    Image.fromarray(pixels).save(root / "train" / "cat" / "0.png", exif=exif)
    turned = pixels[::-1, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(load_folder(root).train.images[0], turned)


def test_decompression_bomb_is_refused_before_it_is_decoded(root):
    def chunk(kind, content):
        crc = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + crc

    header = (12_000).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (root / "train" / "cat" / "bomb.png").write_bytes(bomb)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(DataError, match=r"bomb\.png: the image has 12000 x 12000 pixels, more than"),
    ):
        load_folder(root)


def test_dangling_link_is_named(root):
    (root / "train" / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: not an image Pillow can read"):
        load_folder(root)


def png(size, *, depth, colour_type, pixels=b""):
    def chunk(kind, content):
        return (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    header = b"".join(side.to_bytes(4, "big") for side in size) + bytes((depth, colour_type, 0, 0, 0))
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_of_depth_16(colour_type, channels):
    return png((6, 6), depth=16, colour_type=colour_type, pixels=bytes(6 * (1 + 6 * channels * 2)))


def tiff_in_planes(bits):
    """An uncompressed RGB TIFF of 6x6 pixels whose channels lie one after the other."""
    plane = 6 * 6 * bits // 8
    first, places = 8, 8 + 3 * plane
    entries = [
        (256, 3, 1, 6),
        (257, 3, 1, 6),
        (258, 3, 3, places + 12),  # bits of a sample
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 3, places),  # where the planes begin
        (277, 3, 1, 3),
        (278, 3, 1, 6),
        (279, 4, 3, places + 18),
        (284, 3, 1, 2),  # in planes
    ]
    tables = struct.pack("<3I3H3I", *(first + k * plane for k in range(3)), *[bits] * 3, *[plane] * 3)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0" + struct.pack("<I", places + len(tables)) + bytes(3 * plane) + tables + directory + bytes(4)
    )


@pytest.mark.parametrize(
    "content",
    [
        png_of_depth_16(2, 3),
        png_of_depth_16(6, 4),
        png_of_depth_16(4, 2),
        b"P6 6 6 4095\n" + bytes(6 * 6 * 3 * 2),
        b"\x01\xda\x00\x02\x00\x03\x00\x06\x00\x06\x00\x03".ljust(512, b"\x00") + bytes(6 * 6 * 3 * 2),
        tiff_in_planes(16),
    ],
    ids=["RGB", "RGBA", "LA", "12 bits in PPM", "SGI", "TIFF in planes"],
)
def test_files_of_more_than_8_bits_are_refused_though_pillow_shows_8(root, content):
    (root / "train" / "cat" / "deep.png").write_bytes(content)
    with pytest.raises(DataError, match=r"deep\.png: the image has mode .*, more than 8 bits a channel"):
        load_folder(root)


def test_files_of_8_bits_or_fewer_are_not_taken_for_deep_ones(root):
    (root / "train" / "cat" / "planes.png").write_bytes(tiff_in_planes(8))
    picture = Image.fromarray(write_image(root / "train" / "cat" / "0.png"))
    for kind in ("bmp", "gif", "jpg", "ppm", "sgi", "tga", "tif", "webp"):
        picture.save(root / "train" / "cat" / f"0.{kind}")
    assert load_folder(root).train.per_class_counts()[0] == 3 + 9


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_pictures_in_the_alpha_channel_are_laid_on_white_and_said(root, mode):
    alpha = np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8)
    for file in root.rglob("*.png"):
        black = Image.new(mode, (6, 6), 0)
        black.putalpha(Image.fromarray(alpha))
        black.save(file)
    data = load_folder(root)
    assert data.train.images.shape[1] == (3 if mode == "RGBA" else 1)
    np.testing.assert_allclose(data.train.images[0, 0], 255 - alpha, atol=1)
    assert "6 images are transparent in parts, and white was put behind" in data.remarks[0]
    assert load_folder(root).remarks == data.remarks  # from the cache


def test_alpha_that_is_the_same_everywhere_is_dropped_without_a_word(root):
    picture = Image.fromarray(write_image(root / "train" / "cat" / "0.png"))
    faint = picture.convert("RGBA")
    faint.putalpha(128)
    faint.save(root / "train" / "cat" / "0.png")
    data = load_folder(root)
    np.testing.assert_array_equal(data.train.images[0], np.asarray(picture).transpose(2, 0, 1))
    assert data.remarks == ()


def test_image_that_pillow_itself_refuses_for_its_size_gets_the_same_advice(root):
    (root / "train" / "cat" / "bomb.png").write_bytes(png((14_000, 14_000), depth=8, colour_type=0))
    with pytest.raises(
        DataError, match=r"bomb\.png: the image is more than Pillow's limit .*; shrink or remove"
    ):
        load_folder(root)


@pytest.mark.parametrize("wrapped", [True, False])
def test_jpeg_2000_of_more_than_8_bits_is_refused_by_its_header(root, wrapped):
    content = io.BytesIO()
    Image.fromarray(write_image(root / "train" / "cat" / "0.png")).save(
        content, "JPEG2000", no_jp2=not wrapped
    )
    file = root / "train" / "cat" / "deep.jp2"
    file.write_bytes(content.getvalue())
    assert len(load_folder(root).train) == 7
    codestream = content.getvalue().index(b"\xff\x4f\xff\x51")
    deep = bytearray(content.getvalue())
    deep[codestream + 42] = 11
    file.write_bytes(deep)
    with pytest.raises(DataError, match=r"deep\.jp2: the image has mode RGB, more than 8 bits"):
        load_folder(root)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_of_more_than_8_bits_is_refused_by_its_header(root):
    content = io.BytesIO()
    Image.fromarray(write_image(root / "train" / "cat" / "0.png")).save(content, "AVIF")
    file = root / "train" / "cat" / "deep.avif"
    file.write_bytes(content.getvalue())
    assert len(load_folder(root).train) == 7
    deep = bytearray(content.getvalue())
    deep[deep.index(b"av1C") + 6] |= 0x40
    depths = deep.index(b"pixi") + 9
    deep[depths : depths + 3] = b"\x0a\x0a\x0a"
    file.write_bytes(deep)
    with pytest.raises(DataError, match=r"deep\.avif: the image has mode RGB, more than 8 bits"):
        load_folder(root)


def test_a_choice_that_a_source_does_not_have_is_refused(root):
    with pytest.raises(
        ConfigError, match="--label-column coarse: folder has no such choice; it is for parquet"
    ):
        load_folder(root, label_column="coarse")


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "valid"), ("TRAIN", "Val")])
def test_parts_are_found_in_any_case_and_by_their_usual_names(root, train, test):
    (root / "train").rename(root / train)
    (root / "test").rename(root / test)
    assert len(load_folder(root).test) == 4


@pytest.mark.parametrize("inner", ["", "unknown"])
def test_a_test_part_without_classes_is_passed_over_with_a_line(root, inner):
    (root / "test").rename(root / "val")
    write_image(root / "test" / inner / "1.png")
    data = load_folder(root)
    assert len(data.test) == 4
    assert data.remarks == ("test/ has no class directories, so val/ is the test part",)
    assert load_folder(root).remarks == data.remarks  # from the cache


def test_a_test_part_without_classes_and_nothing_beside_it_is_named(root):
    for file in (root / "test").rglob("*.png"):
        file.rename(root / "test" / f"{file.parent.name}-{file.name}")
    for name in ("cat", "dog"):
        (root / "test" / name).rmdir()
    with pytest.raises(
        DataError, match=r"test: no class directories, so its images have no labels; .*--test-part"
    ):
        load_folder(root)


def test_the_only_directory_of_a_test_part_is_named_if_no_class_is_called_so(root):
    (root / "test" / "cat").rename(root / "test" / "Cat")
    for file in (root / "test" / "dog").iterdir():
        file.unlink()
    (root / "test" / "dog").rmdir()
    with pytest.raises(DataError, match=r"test/Cat: class 'Cat' is not among the 2 classes of .*train; "):
        load_folder(root)


@pytest.mark.parametrize("part", ["train", "test"])
def test_two_directories_for_one_part_are_refused(root, part):
    other = part.title()
    write_image(root / other / "cat" / "0.png")
    if not (root / part).samefile(root / other):
        with pytest.raises(DataError, match=rf"two directories for one part, {other}/ and {part}/; merge"):
            load_folder(root)


def test_imagenets_validation_folder_is_told_of_its_source(root):
    (root / "test").rename(root / "val")
    for name in ("cat", "dog"):
        for file in (root / "val" / name).iterdir():
            file.rename(root / "val" / f"ILSVRC2012_val_0000000{file.stem}{name}.JPEG")
        (root / "val" / name).rmdir()
    with pytest.raises(DataError, match=rf"ImageNet's validation images .*; pass imagenet:{root}"):
        load_folder(root)


def test_a_flag_chooses_the_test_part(root):
    write_image(root / "holdout" / "cat" / "0.png", seed=1)
    write_image(root / "holdout" / "dog" / "0.png", seed=2)
    assert len(load_folder(root).test) == 4
    assert len(load_folder(root, test_part="holdout").test) == 2
    with pytest.raises(DataError, match=r"has no directory hold/ \(holdout/, test/, train/ is there\)"):
        load_folder(root, test_part="hold")
    with pytest.raises(DataError, match=r"--test-part train: .* is the training part"):
        load_folder(root, test_part="train")


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "__MACOSX"])
def test_what_file_managers_leave_behind_is_passed_over(root, name):
    for place in (root / "train", root / "train" / "cat", root / "test" / "dog"):
        (place / name).mkdir() if name == "__MACOSX" else (place / name).write_bytes(b"x")
    assert load_folder(root).train.per_class_counts().tolist() == [3, 3]


def test_class_names_in_two_unicode_forms_are_one_class(root):
    (root / "train" / "dog").rename(root / "train" / "caf\u00e9")
    (root / "test" / "dog").rename(root / "test" / "cafe\u0301")
    data = load_folder(root)
    assert data.train.class_names == ("caf\u00e9", "cat")
    assert data.test.per_class_counts().tolist() == [2, 2]
    write_image(root / "train" / "cafe\u0301" / "0.png")
    both = (
        r"two directories are called 'café', 'cafe\\u0301' and 'caf\\xe9', which differ in their Unicode form"
    )
    with pytest.raises(DataError, match=both):
        load_folder(root)


def sessions(tmp_path, parts=("",), counts=(("a", "cup", 4), ("a", "pen", 10), ("b", "cup", 7))):
    root = tmp_path / "My Shop"
    for part in parts:
        for session, name, count in counts:
            for i in range(count):
                write_image(root / part / session / name / f"{i}.png", seed=ord(session) + 10 * len(name) + i)
    return root


def load_sessions(root):
    return load(f"sessions:{root}", data_dir=root.parent / "data")


def test_sessions_and_classes_are_classes_and_a_share_of_each_is_the_test_part(tmp_path):
    data = load_sessions(sessions(tmp_path))
    assert data.train.class_names == ("a/cup", "a/pen", "b/cup")
    assert (data.train.per_class_counts() + data.test.per_class_counts()).tolist() == [4, 10, 7]
    assert data.test.per_class_counts().tolist() == [1, 3, 2]
    assert load_sessions(tmp_path / "My Shop").test.fingerprint == data.test.fingerprint
    assert data.source.title == "my-shop (sessions)"


def test_sessions_may_have_a_test_part_of_their_own(tmp_path):
    data = load_sessions(sessions(tmp_path, ("train", "test")))
    assert data.train.per_class_counts().tolist() == data.test.per_class_counts().tolist() == [4, 10, 7]


def test_a_session_that_cannot_be_tested_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"'b/cup' has 1 image\(s\); a validation split needs at least 2"):
        load_sessions(sessions(tmp_path, counts=(("a", "cup", 4), ("b", "cup", 1))))
    write_image(tmp_path / "My Shop" / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png: a file where class directories are expected"):
        load_sessions(tmp_path / "My Shop")


def test_a_session_that_has_a_test_part_only_is_refused_by_name(tmp_path):
    root = sessions(tmp_path, ("train", "test"))
    write_image(root / "test" / "c" / "cup" / "0.png")
    with pytest.raises(DataError, match=r"test/c/cup: has no training images beside it"):
        load_sessions(root)
