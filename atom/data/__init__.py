"""Sources of real images: one type, nine specs, official splits, errors that name the file."""

from atom.data.image_set import ImageSet, RealData, SourceInfo, split_validation
from atom.data.sources import known_specs, load

__all__ = ["ImageSet", "RealData", "SourceInfo", "known_specs", "load", "split_validation"]
