"""From the encoded images of two parts to a set with its official split, decoded or out of the cache."""

from collections.abc import Sequence

from atom.data.cache import cached
from atom.data.decode import Decoded, Entry, decode_all, match_channels
from atom.data.image_set import ImageSet, RealData, SourceInfo
from atom.data.place import Place
from atom.data.request import Request


def decode_parts(
    request: Request,
    parts: tuple[Sequence[Entry], Sequence[Entry]],
    class_names: tuple[str, ...],
    *,
    name: str,
    source: SourceInfo,
    skipped: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> RealData:
    """The images of a training and a test part, in the order of their entries.

    Args:
        request: how they are decoded.
        parts: the training and the test images.
        class_names: in the order of the labels.
        name: of the set.
        source: of the set.
        skipped, remarks: what was found before; see `RealData`.

    Raises:
        DataError: an image is missing or broken, or see `RealData`.
    """
    train, test = (decode_all(part, request.decoding, num_entries=len(part)) for part in parts)
    return joined_parts(
        request, train, test, class_names, name=name, source=source, skipped=skipped, remarks=remarks
    )


def joined_parts(
    request: Request,
    train: Decoded,
    test: Decoded,
    class_names: tuple[str, ...],
    *,
    name: str,
    source: SourceInfo,
    skipped: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> RealData:
    """Both parts as one set, in colour where one of them is; arguments and errors as of `decode_parts`."""
    train_images, test_images = match_channels(train.images, test.images, folder=request.decoding.folder)
    return RealData(
        name,
        request.spec,
        ImageSet.create(train_images, train.labels, class_names),
        ImageSet.create(test_images, test.labels, class_names),
        source,
        skipped=(*skipped, *train.skipped, *test.skipped),
        remarks=(*remarks, *train.remarks, *test.remarks),
    )


def decoded_parts(
    request: Request,
    root: Place,
    parts: tuple[Sequence[Entry], Sequence[Entry]],
    class_names: tuple[str, ...],
    *,
    name: str,
    source: SourceInfo,
    skipped: Sequence[str] = (),
    remarks: Sequence[str] = (),
    tables: Sequence[Place] = (),
) -> RealData:
    """What `decode_parts` makes of these, or the cache has of before.

    Args:
        request, parts, class_names, name, source, skipped, remarks: see there.
        root: the directory of the set.
        tables: files that decided entries and names: a change to one of them has images decoded anew.
    """

    def build() -> RealData:
        return decode_parts(
            request, parts, class_names, name=name, source=source, skipped=skipped, remarks=remarks
        )

    files = [entry.source for part in parts for entry in part if isinstance(entry.source, Place)]
    return cached(request, root, [*files, *tables], name=name, build=build, facts=(skipped, remarks))
