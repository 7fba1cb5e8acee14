"""A user's own images from several occasions: one directory a session, in it one directory a class."""

from atom.data import about
from atom.data.cache import cached
from atom.data.class_folders import (
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    class_folders,
    entries_of,
    part_folders,
    visible,
)
from atom.data.decode import decode_all, match_channels
from atom.data.image_set import ImageSet, RealData, split_validation
from atom.data.place import Place
from atom.data.request import Request, required_directory, slug
from atom.errors import DataError

SESSION_TEST_FRAC = 0.3
"""Share of the images of a session and class to test on, where sessions have no test part. Chosen."""


def read_sessions(request: Request) -> RealData:
    """Images under SESSION/<class>/, each session and class a class of its own, called SESSION/<class>.

    Where there are train/ and test/, sessions lie under both; else a share of `SESSION_TEST_FRAC` of every session and
    class is the test part, the same for every command. A session need not have all classes.

    Raises:
        DataError: see `read_folder`; or a session and class with too few images to test on some.
    """
    root = required_directory(request)
    name = slug(root)
    source = about.unknown_source(name, "sessions")
    skipped: list[str] = []
    has_parts = any(path.is_dir() and path.name.lower() in TRAIN_FOLDERS for path in visible(root))
    train_dir = part_folders(request, root, TRAIN_FOLDERS)[0] if has_parts else root
    test_dir = part_folders(request, root, TEST_FOLDERS)[0] if has_parts else root
    found = {
        folder: {
            f"{session}/{class_name}": path
            for session, directory in class_folders(request, folder, skipped).items()
            for class_name, path in class_folders(request, directory, skipped).items()
        }
        for folder in dict.fromkeys((train_dir, test_dir))
    }
    names = tuple(sorted(found[train_dir]))
    stranger = next((pair for pair in found[test_dir] if pair not in found[train_dir]), None)
    if stranger is not None:
        raise DataError(
            f"{test_dir / stranger}: has no training images beside it, in {train_dir / stranger}."
        )
    parts = [entries_of(classes, folder, names) for folder, classes in found.items()]

    def build() -> RealData:
        decoded = [decode_all(part, request.decoding, num_entries=len(part)) for part in parts]
        images = [part.images for part in decoded]
        if has_parts:
            images = [*match_channels(*images, folder=request.decoding.folder)]
        sets = [ImageSet.create(own, part.labels, names) for own, part in zip(images, decoded, strict=True)]
        train, test = (
            sets
            if has_parts
            else split_validation(
                *sets, fraction_or_count=SESSION_TEST_FRAC, seed=0, folder=request.decoding.folder
            )
        )
        return RealData(
            name,
            request.spec,
            train,
            test,
            source,
            skipped=(*skipped, *(line for part in decoded for line in part.skipped)),
            remarks=tuple(remark for part in decoded for remark in part.remarks),
        )

    files = [entry.source for part in parts for entry in part if isinstance(entry.source, Place)]
    return cached(request, root, files, name=name, build=build, facts=skipped)
