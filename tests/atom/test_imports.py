import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import atom

ROOT = Path(__file__).parents[2]
EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "core.md").read_text(), re.DOTALL)[0]

BLOCKED = ("ray", "mlflow", "torchvision", "tyro", "rich")
BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked in this test")

sys.meta_path.insert(0, Blocked())
"""
WALK = """
import importlib, pkgutil
import atom
names = [module.name for module in pkgutil.walk_packages(atom.__path__, "atom.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints that finds this checkout and nothing else of its parent's."""
    finished = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def imported_by(code: str, tmp_path: Path) -> set[str]:
    """Top-level packages in memory after the code."""
    return set(
        python(f"{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})", tmp_path).split()
    )


def shrunk(example: str) -> str:
    for setting, small in (("ITERATIONS", 4), ("EPOCHS", 2)):
        example, found = re.subn(rf"^{setting} = \d+$", f"{setting} = {small}", example, flags=re.MULTILINE)
        assert found == 1
    return example


def test_the_block_blocks(tmp_path: Path) -> None:
    code = (
        f"{BLOCK}\nfor name in {BLOCKED!r}:\n    try: __import__(name)\n    except ImportError as e: print(e)"
    )
    assert python(code, tmp_path).count("is blocked") == len(BLOCKED)


def test_every_module_of_atom_and_a_whole_distillation_need_no_cluster(tmp_path: Path) -> None:
    """The page on the core is run as it stands, with fewer iterations and epochs."""
    output = python(BLOCK + WALK + shrunk(EXAMPLE), tmp_path).splitlines()
    assert int(output[0]) == len(list((ROOT / "atom").rglob("*.py"))) - 1
    assert [line.split(":")[0] for line in output[1:-1]] == [f"classes [{number}]" for number in range(10)]
    assert re.fullmatch(r"test accuracy \d+\.\d ± \d+\.\d %, 3 trainings of one set", output[-1])
    assert (tmp_path / "digits-ipc1" / "distilled.safetensors").is_file()


@pytest.mark.parametrize("code", ["import atom", "import atom.settings", "from atom import DistillSettings"])
def test_settings_are_read_without_torch(code: str, tmp_path: Path) -> None:
    assert not imported_by(code, tmp_path) & {"torch", "numpy", *BLOCKED}


def test_help_waits_for_neither_torch_nor_ray_nor_mlflow(tmp_path: Path) -> None:
    assert not imported_by("import pipelines.console.commands", tmp_path) & {"torch", "ray", "mlflow"}


def test_every_dependency_is_imported_somewhere() -> None:
    """What nothing imports would be installed by everybody for nobody."""
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[\[>=<]", line)[0] for line in asked]
    code = "".join(
        file.read_text() for part in ("atom", "apps", "pipelines") for file in (ROOT / part).rglob("*.py")
    )
    unused = [
        name
        for name in names
        if not re.search(rf"^\s*(import|from) {modules.get(name, name)}\b", code, re.MULTILINE)
    ]
    # MLflow asks for psutil without depending on it, where it measures the machine.
    assert unused == ["psutil"]


def test_main_names_are_where_the_package_says() -> None:
    assert [name for name in atom.__all__ if getattr(atom, name).__name__ != name] == []
    assert set(atom.__all__) <= set(dir(atom))
    assert re.match(r"\d", atom.__version__)
    with pytest.raises(AttributeError, match="no attribute 'distil'; its names are About, AtomError"):
        atom.distil  # noqa: B018
