"""From a source of real images to what workers take: loaded, shrunk for a smoke run, preprocessed, in the store."""

# N images, C channels, H height, W width, K classes

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import ray
import safetensors.torch
from safetensors import SafetensorError

from atom import data as real_data
from atom import nets
from atom.data import ImageSet, RealData
from atom.data.decode import Decode, OnDecoded
from atom.data.download import OnDownload
from atom.data.sources import OWN, decoded_folder
from atom.device import use_threads
from atom.distilled import DistilledSet
from atom.errors import AtomError, ConfigError, StoreError
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import whitens_by_itself
from atom.settings import INITS, images_of_classes
from atom.whitening import rank_flaw
from pipelines.console.command import say
from pipelines.console.commands import DataSettings
from pipelines.console.progress import Progress
from pipelines.output.store import Store
from pipelines.workers.cluster import is_joined
from pipelines.workers.decoding import ClusterDecoder

log = logging.getLogger(__name__)

PREPROCESS_NAME = "preprocess.safetensors"
_MIN_SIDE = 2
"""Pixels; InstanceNorm has no variance on a single one."""
_SMOKE_TRAIN, _SMOKE_TEST = 100, 20


def load_real(settings: DataSettings, *, smoke: bool, given: DistilledSet | None = None) -> RealData:
    """The real images, the validation part put aside; in a smoke run out of 100 training and 20 test images a class.

    Args:
        settings: what and how.
        smoke: see above.
        given: a set distilled from them, which knows whether they show symbols.

    Raises:
        ConfigError, DataError: see `atom.data.load`; images too small for any network.
    """
    with Loading() as loading:
        loaded = real_data.load(
            settings.dataset,
            data_dir=settings.data_dir,
            image_size=settings.image_size,
            allow_download=settings.download,
            skip_broken=settings.skip_broken,
            image_column=settings.image_column,
            label_column=settings.label_column,
            test_part=settings.test_part,
            class_names=settings.class_names,
            **loading.hooks,
        )
    _check_size(loaded)
    kept, folder = settings.train_per_class, decoded_folder(settings.dataset, settings.data_dir)
    if smoke:
        # What the real command refuses is refused in the same words, before the set shrinks.
        loaded.hold_out(settings.validation_frac, train_per_class=kept, folder=folder)
        loaded = loaded.with_images(
            _first_of_each(loaded.train, _SMOKE_TRAIN), _first_of_each(loaded.test, _SMOKE_TEST)
        )
        if kept is not None:
            rest = loaded.hold_out(settings.validation_frac, folder=folder).train
            kept = min(kept, int(rest.per_class_counts().min()))
    said = None if given is None else given.symbols
    if settings.symbols != "auto":
        said = settings.symbols == "on"
    loaded = replace(loaded, said_symbols=said)
    return loaded.hold_out(settings.validation_frac, train_per_class=kept, folder=folder)


def _check_size(real: RealData) -> None:
    height, width = real.train.images.shape[2:]
    if min(height, width) < _MIN_SIDE:
        raise ConfigError(
            f"--dataset {real.spec}: its images are {width}x{height} pixels, too small for any network; pass"
            " --image-size 4 or more to enlarge them, or another source."
        )


class Hooks(TypedDict):
    """Of `atom.data.load`."""

    on_download: OnDownload
    on_decoded: OnDecoded
    decode_elsewhere: Decode | None


class Loading:
    """Lines on the screen for every file that is downloaded, and while many images are decoded, on a cluster if it is.

    A context manager.

    Attributes:
        hooks: what `load` and `load_labelled` are to be given.
    """

    def __init__(self) -> None:
        self._shown, self._kept = ExitStack(), ExitStack()
        # The processors of one machine are kept busy by threads.
        elsewhere = self._kept.enter_context(ClusterDecoder()) if is_joined() else None
        self.hooks = Hooks(on_download=self.downloaded, on_decoded=self.decoded, decode_elsewhere=elsewhere)
        self._progress: Progress | None = None

    def __enter__(self) -> "Loading":
        return self

    def __exit__(self, *_raised: object) -> None:
        self._shown.close()
        self._kept.close()

    def decoded(self, done: int, total: int) -> None:
        """Say how many images are decoded."""
        if not done:
            self._shown.close()
            shown = Progress("decoding", total, num_items=total, unit="images", item="images")
            self._progress = self._shown.enter_context(shown)
        elif self._progress is not None:
            self._progress.update(done, items_done=done)

    def downloaded(self, name: str, received: int, total: int | None) -> None:
        """Say that a file is on its way, and how far."""
        if not received:
            self._shown.close()
            self._progress = None
            say(f"downloading {name}")
        elif self._progress is None and total is not None:
            shown = Progress(name, total / 1e6, num_items=1, unit="MB", item="MB")
            self._progress = self._shown.enter_context(shown)
        if self._progress is not None:
            self._progress.update(received / 1e6, items_done=0)


def network_identity(name: str, real: RealData) -> str:
    """What results of a network depend on, for these images; see `atom.nets.identity`.

    Raises:
        ConfigError: it is a user's own and cannot be built.
    """
    channels, height, width = real.train.images.shape[1:]
    return nets.identity(
        name, channels=channels, image_size=(height, width), num_classes=real.train.num_classes
    )


def check_ipc(
    real: RealData,
    *,
    ipc: int,
    factor: int,
    init: str,
    baselines: Sequence[str] = (),
    images_in_all: int | None = None,
    asked: str = "",
    whose: str = "",
) -> None:
    """Refuse more images per class than a class has; those that start from noise or a set are not limited by it.

    Args:
        real: whose training images are counted.
        ipc: stored images of a class, at most.
        factor: of these.
        init: where they start.
        baselines: coresets that stand beside them.
        images_in_all: of a set that has not as many of each class.
        asked: what the user asked for, by its flag; default --ipc or --images-in-all.
        whose: who wants these coresets, and what to pass without them; default --baselines.

    Raises:
        ConfigError: naming the class, what it has and what to pass.
    """
    counts_K, names = real.train.per_class_counts(), real.train.class_names
    wanted_K = [ipc] * len(names) if images_in_all is None else images_of_classes(images_in_all, len(names))
    flag = "--ipc" if images_in_all is None else "--images-in-all"
    asked = asked or f"{flag} {ipc if images_in_all is None else images_in_all}"
    if init == "noise" or init not in INITS:
        short = [c for c, wanted in enumerate(wanted_K) if wanted > counts_K[c]]
        if baselines and short:
            whose = whose or f"--baselines {baselines[0]} asks for; pass --baselines without a name"
            raise ConfigError(
                f"{asked}: class {names[short[0]]!r} of {real.spec} has only {counts_K[short[0]]} training images, too"
                f" few for the coreset of equal storage that {whose}."
            )
        return
    # Starts are drawn for every class, also where one keeps fewer.
    needed, smallest = ipc * factor**2, int(counts_K.argmin())
    if needed > counts_K[smallest]:
        most = max(1, counts_K[smallest] // factor**2)
        # Every class has so many then.
        most *= 1 if images_in_all is None else len(names)
        grid = f" with --factor {factor}" if factor > 1 else ""
        starts = (
            f" (which starts from {needed} real images a class)" if needed != ipc or images_in_all else ""
        )
        raise ConfigError(
            f"{asked}{grid}{starts}: class {names[smallest]!r} of {real.spec} has only {counts_K[smallest]} training"
            f" images; pass {flag} {most} or less."
        )


def judging_images(real: RealData, judge_on: str) -> ImageSet:
    """The real images that trained networks are tested on: the test images, or the validation part.

    Raises:
        ConfigError: there is no such part.
    """
    if judge_on == "test":
        return real.test
    if real.validation is None:
        raise ConfigError(
            f"--judge-on {judge_on}: no training images are put aside; pass --validation-frac as well, such as 0.1."
        )
    return real.validation


BLANK_FRAC = 0.01
"""Contrast of a class, of the whole set's, below which its images count as blank. Chosen: noise of two levels of 255
beside digits has 0.006."""


def blank_classes(real: RealData) -> list[str]:
    """Names of classes whose training images show nothing: one colour each, but for noise, where others do not.

    Contrast is the root mean square of the pixels' deviations from the mean of their channel in their image.
    """
    train = real.train
    of_class = map(train.of_class, range(train.num_classes))
    variance_K = np.array([images.var(axis=(2, 3), dtype=np.float32).mean() for images in of_class])
    blank_K = np.sqrt(variance_K) < BLANK_FRAC * np.sqrt(variance_K.mean())
    return [train.class_names[c] for c in np.flatnonzero(blank_K)]


def notes_on_images(real: RealData) -> list[str]:
    """What a user should know before the work starts: how the files were read, and classes that cannot be learnt."""
    notes, train = [*_on_symbols(real), *real.remarks], real.train
    if train.num_classes == 1:
        notes.append(
            f"there is one class only, {train.class_names[0]!r}: every network is right every time, so no accuracy"
            " means anything"
        )
    blank = blank_classes(real)
    if blank:
        notes.append(f"all images of {', '.join(blank)} are blank, and so will be the distilled ones")
    for class_id, name in enumerate(train.class_names):
        rows = train.indices_of(class_id)
        first = train.images[rows[0]]
        # Two images first: a class whose images differ, as nearly all do, costs one comparison.
        same = len(rows) > 1 and np.array_equal(train.images[rows[-1]], first)
        if name not in blank and same and bool((train.of_class(class_id) == first).all()):
            notes.append(f"all {len(rows)} training images of {name} are identical")
    return notes


def _on_symbols(real: RealData) -> list[str]:
    """How a user's own images are taken, where nobody said it; nothing where it is known."""
    if real.said_symbols is not None or real.kind not in OWN:
        return []
    if real.symbols:
        names = ", ".join(real.train.class_names[:2])
        return [
            f"classes called {names}, ... count as written symbols, whose images are not mirrored; pass --symbols off"
            " if they are none"
        ]
    return [
        "a mirrored image counts as one of its class; pass --symbols on if these show digits, letters or the like"
    ]


def preprocessing(real: RealData, settings: DistillSettings, store: Store, cache: Path | None) -> Preprocess:
    """The preprocessing of a run: what the output holds, else what the cache holds, else fitted, and kept.

    A resumed run must see the very bits it began with, and a fit depends on the number of threads; so the
    output's own copy comes first.
    """
    if store.exists(PREPROCESS_NAME):
        found = _parsed(store.read_bytes(PREPROCESS_NAME), store.where(PREPROCESS_NAME))
        # Whether "auto" whitens may have changed since: then it is fitted anew, and with it all that depends on it.
        if found is not None and (found.zca is not None) == (settings.zca == "on"):
            return found
    cached = _cache_path(real, settings, cache)
    fitted = _parsed(cached.read_bytes(), str(cached)) if cached is not None and cached.is_file() else None
    if fitted is None:
        with use_threads(os.cpu_count() or 1):
            fitted = Preprocess.fit(real.train.images, zca=settings.zca == "on", zca_eps=settings.zca_eps)
        _write_cache(fitted, cached)
    store.write_bytes(PREPROCESS_NAME, _serialised(fitted))
    return fitted


def whitening_flaw(real: RealData, settings: DistillSettings) -> str | None:
    """What keeps `zca="auto"` from whitening images of a shape that it whitens; None where nothing does."""
    if settings.zca != "auto" or not whitens_by_itself(*real.train.images.shape[1:]):
        return None
    return rank_flaw(real.train.images)


def not_whitened(flaw: str | None) -> list[str]:
    """A note on images that are not whitened by themselves."""
    if flaw is None:
        return []
    return [f"the images are not whitened, since {flaw}; pass --zca on to whiten them all the same."]


def put_classes(images_NCHW: np.ndarray, labels_N: np.ndarray, num_classes: int) -> dict[int, Any]:
    """A Ray reference to the images of each class; arrays in the object store are mapped, not copied."""
    return {c: ray.put(np.ascontiguousarray(images_NCHW[labels_N == c])) for c in range(num_classes)}


def _first_of_each(images: ImageSet, count: int) -> ImageSet:
    rows = [images.indices_of(c)[:count] for c in range(images.num_classes)]
    return images.subset(np.sort(np.concatenate(rows)))


def _serialised(preprocess: Preprocess) -> bytes:
    return safetensors.torch.save({name: t.contiguous() for name, t in preprocess.tensors().items()})


def _parsed(content: bytes, where: str) -> Preprocess | None:
    try:
        return Preprocess.from_tensors(safetensors.torch.load(content))
    except (AtomError, SafetensorError) as error:
        log.warning("%s is damaged and is made anew: %s", where, error)
        return None


def _cache_path(real: RealData, settings: DistillSettings, cache: Path | None) -> Path | None:
    # Normalisation alone takes milliseconds; only the whitening is worth a file.
    if cache is None or settings.zca != "on":
        return None
    return cache / f"zca-{real.train.fingerprint[:16]}-eps{settings.zca_eps:g}.safetensors"


def _write_cache(fitted: Preprocess, path: Path | None) -> None:
    if path is None:
        return
    try:
        Store.open(path.parent).write_bytes(path.name, _serialised(fitted))
    except StoreError as error:
        log.warning("the whitening is not cached: %s", error)
