"""The house as design has it: arrows point one way, and no file is on a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("atom", "apps", "pipelines")


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of this project that a file imports anywhere: in functions and for annotations too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which this test does not follow"
            assert node.module
            inside = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else node.module for name in inside}
    return found & known.keys()


def test_no_file_is_on_a_circle_of_imports() -> None:
    known = modules()
    graph = {name: imports_of(path, known) - {name} for name, path in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_arrows_point_from_pipelines_to_apps_to_atom() -> None:
    known = modules()
    for name, path in known.items():
        above = PACKAGES[PACKAGES.index(name.partition(".")[0]) + 1 :]
        wrong = [other for other in imports_of(path, known) if other.partition(".")[0] in above]
        assert not wrong, f"{name} imports {', '.join(wrong)}"
