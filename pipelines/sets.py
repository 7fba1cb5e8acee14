"""Distilled sets as commands are given them: found, fetched, checked against the real images."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atom import nets
from atom.artifact import CORE_FILES, MANIFEST, SET_NAME
from atom.data import RealData
from atom.data.place import may_exist
from atom.data.sources import NEED_PATH, choices_of
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from pipelines.console.commands import DataSettings
from pipelines.output.records import DISTILL_WORKER_S, TIMES_NAME, noted_source, times
from pipelines.output.store import Store

log = logging.getLogger(__name__)

MLFLOW_SCHEMES = ("runs", "models", "mlflow-artifacts")


@contextmanager
def local_set(location: str, tracking_uri: str | None, *, flag: str = "--set") -> Iterator[Path]:
    """The set's directory; one at MLflow or on another URI is fetched into a temporary directory.

    Of a URI only the files that make a set are fetched, by names known here: what lies beside them in an output can be
    large, and names in a remote listing can lead anywhere.

    Args:
        location: what the flag says: a directory, an MLflow URI, or a URI of a file system; of a set, or of an output
            with a set in it.
        tracking_uri: of MLflow; None: as for every command.
        flag: how messages call the setting.

    Raises:
        ConfigError: no set was named, or there is none.
        StoreError: the URI cannot be read.
    """
    if not location:
        raise ConfigError(f"{flag} is missing: pass the directory of a distilled set, or runs:/RUN_ID/set.")
    if ":/" not in location:
        yield Path(location)
        return
    with tempfile.TemporaryDirectory() as name:
        # One level down, as in an output: times lie beside a set.
        folder = Path(name) / SET_NAME
        folder.mkdir()
        if location.partition(":")[0] in MLFLOW_SCHEMES:
            _fetch_logged(location, folder, tracking_uri)
        else:
            _fetch_stored(location, folder, flag)
        yield folder


def _fetch_stored(location: str, folder: Path, flag: str) -> None:
    store = Store.open(location, flag=flag)
    prefixes = [prefix for prefix in ("", f"{SET_NAME}/") if store.exists(f"{prefix}{MANIFEST}")]
    if not prefixes:
        raise ConfigError(
            f"{flag} {location}: holds neither {MANIFEST} nor {SET_NAME}/{MANIFEST}; pass the place of a distilled set."
        )
    for name in CORE_FILES:
        (folder / name).write_bytes(store.read_bytes(f"{prefixes[0]}{name}"))
    if store.exists(TIMES_NAME):
        (folder.parent / TIMES_NAME).write_bytes(store.read_bytes(TIMES_NAME))


def _fetch_logged(uri: str, folder: Path, tracking_uri: str | None) -> None:
    from pipelines.tracking import fetch_artifact

    try:
        fetch_artifact(uri, folder, names=CORE_FILES, tracking_uri=tracking_uri)
    except ConfigError as error:
        try:
            fetch_artifact(
                f"{uri.rstrip('/')}/{SET_NAME}", folder, names=CORE_FILES, tracking_uri=tracking_uri
            )
        except ConfigError:
            raise error from None


def own_network(distilled: DistilledSet) -> str:
    """The network a set was distilled with; a plain ConvNet where that cannot be built, or is a user's own code."""
    name = str(distilled.settings.get("network") or "convnet")
    channels, height, width = distilled.images_NCHW.shape[1:]
    try:
        if ":" not in name:
            nets.build(name, channels=channels, image_size=(height, width), num_classes=distilled.num_classes)
            return name
    except ConfigError as error:
        log.warning("the set's own network is not known here, so a ConvNet judges it: %s", error)
    return "convnet"


def real_source(distilled: DistilledSet, location: str, data: DataSettings) -> DataSettings:
    """Where a set's real images are, how they are cropped, resized and called, as far as the command does not say.

    Args:
        distilled: knows what its source is and its image size.
        location: what --set says; an output on this machine knows where the source lies.
        data: of the command; an empty dataset stands for the set's own.

    Raises:
        ConfigError: the source has a place of its own, and that is not known here.
    """
    size = data.image_size
    if size is None:
        # Older sets did not record it; their own source then has the size of their images.
        size = distilled.source.get("image_size", None if data.dataset else distilled.images_NCHW.shape[-1])
    spec = data.dataset or _own_spec(distilled, location)
    names = data.class_names
    if names is None and "--class-names" in choices_of(spec):
        names = distilled.class_names
    return data.model_copy(update={"dataset": spec, "image_size": size, "class_names": names})


def _own_spec(distilled: DistilledSet, location: str) -> str:
    spec = str(distilled.source.get("spec") or "")
    folders = () if ":/" in location else (Path(location), Path(location).absolute().parent)
    for known in (*(noted_source(Store.open(folder)) for folder in folders), spec):
        place = known.partition(":")[2]
        if place and may_exist(place):
            return known
    kind = spec.partition(":")[0]
    if kind and kind not in NEED_PATH:
        return kind
    title = distilled.source.get("title") or "images that it does not name"
    raise ConfigError(
        f"--set {location}: was distilled from {title}, and does not know where these lie on this machine; pass"
        f" --dataset {kind or 'folder'}:PATH."
    )


def check_same_source(distilled: DistilledSet, real: RealData) -> None:
    """Refuse test images of other classes or shape than the set's.

    Raises:
        ConfigError: naming the difference.
    """
    own = real.name == distilled.source.get("name")
    if distilled.class_names != real.test.class_names:
        todo = "it has changed since, so pass it as it was" if own else "pass the set's own source"
        raise ConfigError(
            f"--dataset {real.spec}: its classes are {', '.join(real.test.class_names[:5])}, ..., but the set was"
            f" distilled for {', '.join(distilled.class_names[:5])}, ...; {todo}, with the same --image-column,"
            " --label-column, --test-part and --class-names, if any."
        )
    shape = tuple(distilled.images_NCHW.shape[1:])
    if shape != tuple(real.test.images.shape[1:]):
        todo = (
            f"pass --image-size {shape[2]}"
            if own
            else f"pass the set's own source, or --image-size {shape[2]}"
        )
        raise ConfigError(
            f"--dataset {real.spec}: its images are {real.test.images.shape[1:]}, but the set's are {shape} (channels,"
            f" height, width); {todo}."
        )


def fingerprint(distilled: DistilledSet) -> str:
    """Digest of all that a result of a set depends on.

    Decoded images, labels or soft labels, the factor, the preprocessing, the names of the classes, and how to train on
    it, if it says so.
    """
    images, labels = distilled.decode()
    about: list[object] = [distilled.factor, distilled.preprocess.digest, distilled.class_names]
    # Nothing where there is none: the digests of such sets stay what they were.
    about += [distilled.training] if distilled.training else []
    content = images.numpy().tobytes() + labels.numpy().tobytes() + json.dumps(about).encode()
    return hashlib.sha256(content).hexdigest()


def distil_seconds(distilled: DistilledSet, directory: Path) -> float | None:
    """Time of the set's distillation, summed over workers; None where unknown.

    By the output the set lies in, else by its own results, which know the wall time only: that of one worker.
    """
    for name in (DISTILL_WORKER_S, "distill_s"):
        for folder in (directory, directory.parent):
            seconds = times(Store.open(folder)).get(name)
            if seconds:
                return seconds
    found = [row.get(name) for name in (DISTILL_WORKER_S, "distill_s") for row in distilled.results]
    return next((float(seconds) for seconds in found if isinstance(seconds, int | float)), None)


def held_out(distilled: DistilledSet, real: RealData) -> bool:
    """Whether a set came from these very training images and no others, and so never saw the validation part."""
    return all(source.get("fingerprint") == real.train.fingerprint for source in distilled.sources)
