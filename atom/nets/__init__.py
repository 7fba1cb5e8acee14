"""Networks: the ConvNets and cells of the search spaces, the field's other small ones, and a user's own.

Every network shows the features of its blocks (`atom.nets.layers.BlockNet`), so every one can distil.
"""

from atom.nets.cell_spec import EDGES, CellSpec, cell_space, parse_architecture, parse_cell
from atom.nets.counts import count_multiply_adds, count_parameters, largest_map
from atom.nets.custom import build_with, call, import_function, import_module, import_object, require_blocks
from atom.nets.identity import identity, network_digest, sources_digest
from atom.nets.layers import BlockNet
from atom.nets.registry import build, build_from, is_own, known_names, with_batch_norm
from atom.nets.spec import ConvNetSpec, convnet_space, default_depth, parse_convnet
from atom.nets.starts import begin, count_frozen
from atom.nets.weights import WeightDraw, fill_weights, load_vector

__all__ = [
    "EDGES",
    "BlockNet",
    "CellSpec",
    "ConvNetSpec",
    "WeightDraw",
    "begin",
    "build",
    "build_from",
    "build_with",
    "call",
    "cell_space",
    "convnet_space",
    "count_frozen",
    "count_multiply_adds",
    "count_parameters",
    "default_depth",
    "fill_weights",
    "identity",
    "import_function",
    "import_module",
    "import_object",
    "is_own",
    "known_names",
    "largest_map",
    "load_vector",
    "network_digest",
    "parse_architecture",
    "parse_cell",
    "parse_convnet",
    "require_blocks",
    "sources_digest",
    "with_batch_norm",
]
