"""From encoded images to one uint8 array: decoding, colour rules, sizes, and what happens to broken files."""

# N images, C channels, H height, W width

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from atom.data.image_header import check_header, too_large
from atom.data.image_set import Images, Labels
from atom.data.mapped import empty, in_colour
from atom.data.place import Place, Remote, Slice
from atom.errors import DataError

GREY_MODES = ("1", "L", "LA", "La")
CHUNK = 512
"""Images in flight: bounds the memory of a file that is read faster than it is decoded."""
MANY = 8192
"""So many images are decoded elsewhere where that can be. Chosen: fewer take seconds on one processor."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One encoded image."""

    where: str
    """How errors name it: a path, or a parquet file and row."""
    label: int
    source: Place | Slice | bytes | None
    """The file, the part of a file, its content, or None where the layout promises an image and has none."""


Outcome = tuple[Images, bool] | DataError
"""Of one image: its pixels and whether white was put behind it, or why there are none."""
Decode = Callable[[Iterable[Entry], int | None], Iterator[tuple[Entry, Outcome]]]
"""Takes entries and the side to resize to, and gives each back with its outcome, in order."""
OnDecoded = Callable[[int, int], None]
"""Told how many images of how many are decoded."""


@dataclass(frozen=True)
class Decoding:
    """How the images of one source become an array."""

    image_size: int | None = None
    """Side to crop (centre square) and resize to; None keeps the sizes, which must then agree."""
    expected_size: int | None = None
    """Side the layout promises, where it does."""
    always_rgb: bool = False
    """Three channels even if every image is grey."""
    skip_broken: bool = False
    """Leave out what cannot be decoded instead of raising."""
    folder: Path | None = None
    """Where large arrays lie in files, see `atom.data.mapped.empty`; None: in memory."""
    far: bool = False
    """The images come over a network, and several are to be on their way at once."""
    elsewhere: Decode | None = None
    """Decodes `MANY` images and more, by `outcome_of`; None: this process does."""
    on_decoded: OnDecoded | None = None
    """Called now and then where there are `MANY` images and more."""


@dataclass(frozen=True)
class Decoded:
    """The images of one part of a source."""

    images: Images
    labels: Labels
    skipped: tuple[str, ...]
    transparent: tuple[str, ...] = ()
    """Where the images came from that were laid on white."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of how the images were read."""
        if not self.transparent:
            return ()
        count = len(self.transparent)
        what = f"{count} images are" if count > 1 else "1 image is"
        return (f"{what} transparent in parts, and white was put behind, the first: {self.transparent[0]}",)


def decode_all(entries: Iterable[Entry], decoding: Decoding, *, num_entries: int) -> Decoded:
    """All images as uint8 [N, C, H, W], C = 1 if all are grey and `always_rgb` is off, else 3.

    Raises:
        DataError: an image is broken (unless skipped), of another size than the others, or not square.
    """
    labels: list[int] = []
    skipped: list[str] = []
    transparent: list[str] = []
    images_NCHW: Images | None = None
    first = ""
    for entry, outcome in _decoded(entries, decoding, num_entries):
        if isinstance(outcome, DataError):
            if not decoding.skip_broken:
                raise outcome
            skipped.append(str(outcome))
            continue
        pixels_CHW, on_white = outcome
        if on_white:
            transparent.append(entry.where)
        if images_NCHW is None:
            first = entry.where
            _check_square(pixels_CHW, entry.where, decoding.expected_size)
            channels = 3 if decoding.always_rgb else pixels_CHW.shape[0]
            images_NCHW = empty((num_entries, channels, *pixels_CHW.shape[1:]), decoding.folder)
        if pixels_CHW.shape[1:] != images_NCHW.shape[2:]:
            raise DataError(
                f"{entry.where}: the image is {_size(pixels_CHW)} (width x height), expected "
                f"{_size(images_NCHW)} like {first}; pass --image-size to resize all images."
            )
        if pixels_CHW.shape[0] > images_NCHW.shape[1]:
            images_NCHW = in_colour(images_NCHW, decoding.folder)
        images_NCHW[len(labels)] = pixels_CHW  # one grey channel fills all three
        labels.append(entry.label)
    if skipped:
        log.warning("skipped %d broken image(s), the first: %s", len(skipped), skipped[0])
    if images_NCHW is None:
        images_NCHW = np.empty((0, 1, 0, 0), dtype=np.uint8)
    return Decoded(
        images_NCHW[: len(labels)], np.array(labels, dtype=np.int64), tuple(skipped), tuple(transparent)
    )


def match_channels(one: Images, other: Images, *, folder: Path | None = None) -> tuple[Images, Images]:
    """Both with three channels if either has, so that a grey part and a coloured part fit each other.

    Args:
        one, other: the parts.
        folder: see `Decoding`.
    """
    channels = max(one.shape[1], other.shape[1])

    def widened(images_NCHW: Images) -> Images:
        same = images_NCHW.shape[1] == channels
        return images_NCHW if same else in_colour(images_NCHW, folder)

    return widened(one), widened(other)


def resize_images(images_NCHW: Images, image_size: int) -> Images:
    """The images brought to image_size x image_size with Pillow's bilinear filter, centre square first."""
    if images_NCHW.shape[2:] == (image_size, image_size):
        return images_NCHW
    resized_NCHW = np.empty((*images_NCHW.shape[:2], image_size, image_size), dtype=np.uint8)
    for number, pixels_CHW in enumerate(images_NCHW):
        for channel, pixels_HW in enumerate(pixels_CHW):
            picture = Image.fromarray(np.ascontiguousarray(pixels_HW))
            resized_NCHW[number, channel] = np.asarray(_fit(picture, image_size))
    return resized_NCHW


def decode_one(entry: Entry, *, image_size: int | None) -> tuple[Images, bool]:
    """One image as uint8 [C, H, W], C = 1 for grey, else 3, and whether white was put behind it.

    Orientation tags are obeyed, an alpha channel that varies is laid on white and one that does not is dropped,
    palettes and other colour spaces become RGB, the first frame of an animation counts.

    Raises:
        DataError: the image is missing, broken, larger than Pillow's decompression-bomb limit, or has more than 8 bits
            a channel.
    """
    if entry.source is None:
        raise DataError(f"{entry.where}: there is no image here; expected the bytes of an encoded one.")
    source = entry.source.read_bytes() if isinstance(entry.source, Remote | Slice) else entry.source
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(source) as picture:
            check_header(picture, entry.where)
            pixels, on_white = _pixels(picture, image_size)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, at twice its limit
        raise too_large(entry.where, "is") from error
    except Exception as error:  # Pillow's readers let struct.error, SyntaxError, KeyError and others through
        raise DataError(
            f"{entry.where}: not an image Pillow can read ({_reason(error)}); replace or remove it, "
            "or pass --skip-broken."
        ) from error
    planes = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return planes, on_white


def outcome_of(entry: Entry, image_size: int | None) -> Outcome:
    """See `decode_one`, whose error is an outcome.

    Raises:
        DataError: a remote file or a part of a file cannot be read, which is not broken and must not be skipped as
            that.
    """
    if isinstance(entry.source, Remote | Slice):
        entry = replace(entry, source=entry.source.read_bytes())
    try:
        return decode_one(entry, image_size=image_size)
    except DataError as error:
        return error


def _decoded(
    entries: Iterable[Entry], decoding: Decoding, num_entries: int
) -> Iterator[tuple[Entry, Outcome]]:
    """Every entry with its pixels or its error, in order."""
    many = num_entries >= MANY
    decode = decoding.elsewhere if many and decoding.elsewhere else partial(decode_here, far=decoding.far)
    tell = decoding.on_decoded if many and decoding.on_decoded is not None else _untold
    for done, decoded in enumerate(decode(entries, decoding.image_size)):
        if done % CHUNK == 0:
            tell(done, num_entries)
        yield decoded
    tell(num_entries, num_entries)


def _untold(done: int, total: int) -> None:
    pass


def decode_here(
    entries: Iterable[Entry], image_size: int | None, *, far: bool
) -> Iterator[tuple[Entry, Outcome]]:
    """Every entry with its outcome, in order, decoded in threads of this process where they gain something.

    Args:
        entries: of the images.
        image_size: see `Decoding`.
        far: the images come over a network.
    """
    remaining = iter(entries)
    if image_size is None and not far:
        # NOTE: at 32x32 threads gain nothing (10,000 JPEGs: 1.3 s on one thread, 1.3-2.0 s on 2-4, 2 cores).
        yield from ((entry, outcome_of(entry, None)) for entry in remaining)
        return
    # Of a place behind a network eight requests are on their way, whatever the processors.
    with ThreadPoolExecutor(8 if far else min(8, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(remaining, CHUNK)):
            outcomes = pool.map(lambda entry: outcome_of(entry, image_size), chunk)
            yield from zip(chunk, outcomes, strict=True)


def _pixels(picture: Image.Image, image_size: int | None) -> tuple[Images, bool]:
    """uint8 [H, W] for grey, [H, W, 3] for colour, and whether white was put behind."""
    wanted = "L" if picture.mode in GREY_MODES else "RGB"
    picture.load()
    upright = ImageOps.exif_transpose(picture) if picture.getexif() else picture
    laid = _on_white(upright) if upright.has_transparency_data else None
    upright = upright if laid is None else laid
    plain = upright if upright.mode == wanted else upright.convert(wanted)
    fitted = plain if image_size is None else _fit(plain, image_size)
    return np.asarray(fitted, dtype=np.uint8), laid is not None


def _on_white(picture: Image.Image) -> Image.Image | None:
    """The picture on white, or None if its alpha is the same everywhere, which shows nothing."""
    layered = picture.convert("RGBA")
    low, high = layered.getchannel("A").getextrema()
    if low == high:
        return None
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)


def _fit(picture: Image.Image, image_size: int) -> Image.Image:
    if picture.size == (image_size, image_size):
        return picture
    return ImageOps.fit(picture, (image_size, image_size), method=Image.Resampling.BILINEAR)


def _check_square(pixels_CHW: Images, where: str, expected_size: int | None) -> None:
    height, width = pixels_CHW.shape[1:]
    if expected_size is not None and (height, width) != (expected_size, expected_size):
        raise DataError(
            f"{where}: the image is {width}x{height} (width x height), but this layout has "
            f"{expected_size}x{expected_size}; pass --image-size to resize all images."
        )
    if height != width:
        raise DataError(
            f"{where}: the image is {width}x{height} (width x height), but the networks take square images; "
            "pass --image-size to crop and resize all images."
        )


def _size(pixels: Images) -> str:
    return f"{pixels.shape[-1]}x{pixels.shape[-2]}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return "no known format" if "cannot identify image file" in text else text or type(error).__name__
