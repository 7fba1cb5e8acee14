"""Which network of NAS-Bench-201's cell space is meant: its operations, and its names here and in the benchmark.

A cell has four nodes. The first is its input; each later one is the sum of what its edges bring from all nodes before
it, and the last is its output. One of five operations sits on each of the six edges, which makes 5**6 = 15,625 cells.
Source: Dong and Yang, NAS-Bench-201, ICLR 2020.
"""

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from atom.errors import ConfigError

Operation = Literal["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]

CELL_FAMILY = "nasbench201"
"""How the names of its networks begin."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From which node to which, in the order of the benchmark's architecture strings."""
PUBLISHED_CELLS = 5
"""Cells in each of the three stages, as in the benchmark."""
MAX_CELLS = 20

_SIGNS: dict[Operation, str] = dict(zip(get_args(Operation), "0s13p", strict=True))
_OPERATIONS = {sign: operation for operation, sign in _SIGNS.items()}
_NAME = re.compile(rf"{CELL_FAMILY}(?:-n(\d+))?-([{''.join(_OPERATIONS)}]{{{len(EDGES)}}})")


@dataclass(frozen=True)
class CellSpec:
    """One network of the space.

    Raises:
        ConfigError: there are not six known operations, or the number of cells is out of range.

    Example:
        >>> spec = parse_cell("nasbench201-n1-3s10p3")
        >>> spec.architecture
        '|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|'
        >>> parse_architecture(spec.architecture).name
        'nasbench201-3s10p3'
    """

    operations: tuple[Operation, ...]
    """One for each of EDGES."""
    cells: int = PUBLISHED_CELLS
    """In each of the three stages, 1 to 20. Source of 1: the published code of DC-BENCH (Cui et al., 2022)."""

    def __post_init__(self) -> None:
        if len(self.operations) != len(EDGES) or not set(self.operations) <= _SIGNS.keys():
            raise ConfigError(
                f"NAS-Bench-201 operations {', '.join(self.operations)}: expected {len(EDGES)} of {', '.join(_SIGNS)}."
            )
        if not 1 <= self.cells <= MAX_CELLS:
            raise ConfigError(f"NAS-Bench-201 with {self.cells} cells a stage: expected 1 to {MAX_CELLS}.")

    @property
    def name(self) -> str:
        """`nasbench201-`, `n<cells>-` where they are not 5, and a sign for each edge: 0, s, 1, 3 or p."""
        size = "" if self.cells == PUBLISHED_CELLS else f"-n{self.cells}"
        return f"{CELL_FAMILY}{size}-{''.join(_SIGNS[operation] for operation in self.operations)}"

    @property
    def architecture(self) -> str:
        """The benchmark's own string, in which each node lists its edges as operation~source; it has no size."""
        nodes = (
            "|".join(
                f"{operation}~{source}"
                for (source, target), operation in zip(EDGES, self.operations, strict=True)
                if target == node
            )
            for node in (1, 2, 3)
        )
        return "+".join(f"|{node}|" for node in nodes)


def parse_cell(name: str) -> CellSpec:
    """The network of a name such as `nasbench201-3s10p3` or `nasbench201-n1-3s10p3`.

    Raises:
        ConfigError: it is no such name, or the number of cells is out of range.
    """
    found = _NAME.fullmatch(name)
    if not found:
        signs = ", ".join(f"{sign} {operation}" for sign, operation in _OPERATIONS.items())
        raise ConfigError(
            f"network {name!r}: expected {CELL_FAMILY}-3s10p3 or {CELL_FAMILY}-n1-3s10p3 and the like, with the cells"
            f" of a stage after n, and six of {signs} for the edges {_edges()}."
        )
    cells, signs = found.groups()
    return CellSpec(
        tuple(_OPERATIONS[sign] for sign in signs), PUBLISHED_CELLS if cells is None else int(cells)
    )


def parse_architecture(text: str, *, cells: int = PUBLISHED_CELLS) -> CellSpec:
    """The network of one of the benchmark's architecture strings; its `name` is what commands take.

    Raises:
        ConfigError: it is no such string.
    """
    operations = tuple(re.findall(r"([^|+~]+)~\d", text))
    if set(operations) <= _SIGNS.keys() and len(operations) == len(EDGES):
        spec = CellSpec(operations, cells)
        if spec.architecture == text:
            return spec
    raise ConfigError(
        f"architecture {text!r}: expected one of NAS-Bench-201, an operation for each of the edges {_edges()}, such as"
        f" {CellSpec(('nor_conv_3x3',) * len(EDGES)).architecture}."
    )


def cell_space(cells: int = PUBLISHED_CELLS) -> tuple[CellSpec, ...]:
    """The 15,625 networks, each once, always in the same order; the last edge varies fastest."""
    return tuple(CellSpec(chosen, cells) for chosen in product(_SIGNS, repeat=len(EDGES)))


def _edges() -> str:
    return ", ".join(f"{source}-{target}" for source, target in EDGES)
