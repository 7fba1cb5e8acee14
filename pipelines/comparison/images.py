"""The real images of a comparison, by each preprocessing that an output of it has; mostly there is one."""

# N images, C channels, H height, W width

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from atom.pixels import Pixels, as_stored
from atom.preprocess import Preprocess
from pipelines.comparison.case import Candidate, Comparison
from pipelines.evaluation import TestImages, statistics_images
from pipelines.output.expert_files import ExpertFiles
from pipelines.real_classes import RealClasses
from pipelines.real_images import PREPROCESS_NAME, preprocessing


@dataclass
class Images:
    """Real images by one preprocessing, as workers take them, and the experts that are trained on them."""

    preprocess: Preprocess
    train: Pixels | np.ndarray
    classes: Mapping[int, Any]
    test: TestImages
    experts: ExpertFiles


class RealImages:
    """Made when they are asked for, each once.

    Args:
        comparison: whose.
    """

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._by: dict[str, Images] = {}

    @cached_property
    def common(self) -> Images:
        """By the preprocessing of the comparison."""
        comparison = self._comparison
        settings, cache = comparison.candidates[0].case.settings, comparison.command.data.data_dir / "cache"
        return self._made(preprocessing(comparison.real, settings, comparison.store, cache))

    def of(self, candidate: Candidate) -> Images:
        """By the preprocessing of a candidate's output, which is the common one unless it was begun elsewhere."""
        case, common = candidate.case, self.common
        if not case.store.exists(PREPROCESS_NAME):
            case.store.write_bytes(PREPROCESS_NAME, self._comparison.store.read_bytes(PREPROCESS_NAME))
            return common
        return self._made(preprocessing(case.real, case.settings, case.store, None))

    def all(self) -> list[Images]:
        """Those that were asked for."""
        return list(self._by.values())

    def _made(self, preprocess: Preprocess) -> Images:
        if preprocess.digest not in self._by:
            comparison, real = self._comparison, self._comparison.real
            classes = RealClasses(real.train, preprocess)
            chosen = statistics_images(classes.rows, comparison.command.judges.statistics_images)
            self._by[preprocess.digest] = Images(
                preprocess,
                classes.rows,
                classes,
                TestImages(as_stored(real.test.checked(), preprocess), real.test.labels, chosen),
                ExpertFiles(
                    comparison.experts, real, preprocess=preprocess.digest, device=comparison.device_kind
                ),
            )
        return self._by[preprocess.digest]


__all__ = ["Images", "RealImages"]
