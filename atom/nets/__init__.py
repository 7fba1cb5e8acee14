"""Networks: the ConvNet family of the search space, the field's other small ones, and a user's own.

Every network shows the features of its blocks (`atom.nets.layers.BlockNet`), so every one can distil.
"""

from atom.nets.counts import count_multiply_adds, count_parameters
from atom.nets.custom import identity, require_blocks
from atom.nets.layers import BlockNet
from atom.nets.registry import build, known_names
from atom.nets.spec import ConvNetSpec, convnet_space, default_depth, parse_convnet
from atom.nets.weights import WeightDraw, fill_weights

__all__ = [
    "BlockNet",
    "ConvNetSpec",
    "WeightDraw",
    "build",
    "convnet_space",
    "count_multiply_adds",
    "count_parameters",
    "default_depth",
    "fill_weights",
    "identity",
    "known_names",
    "parse_convnet",
    "require_blocks",
]
