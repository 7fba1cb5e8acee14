"""The pages are true: links lead somewhere, flags exist, commands parse, code compiles, lists are complete."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import torch
import yaml

from apps.continual.exemplars import STORAGES
from apps.continual.learner import LEARNERS
from apps.continual.selection import KINDS
from apps.nas.proxies import KNOWN as PROXIES
from apps.nas.space import NAMED as SPACES
from apps.nas.space import load_space
from apps.nas.table import Row
from atom.methods import registry
from pipelines.console.commands import (
    AuditCommand,
    CompareCommand,
    ContinualCommand,
    DistillCommand,
    EvaluateCommand,
    NasCommand,
)
from pipelines.console.learner_commands import SUB_COMMANDS
from pipelines.console.options import CommandSettings, parse
from pipelines.incremental.plan import DISTILLED, NONE, RESERVOIR, SET

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<=[`\[(])[\w./-]+\.py(?=[`\])])")
# The code of a method in a page, and the name of its file.
OWN_METHOD = re.compile(r'```python\n("""(\w+\.py): a method.*?)^```', re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
PROGRAMS: dict[str, type[CommandSettings]] = {
    "distill": DistillCommand,
    "evaluate": EvaluateCommand,
    "compare": CompareCommand,
    "nas": NasCommand,
    "continual": ContinualCommand,
    "audit": AuditCommand,
}
COMMANDS = {f"pipelines/{name}.py": kind for name, kind in PROGRAMS.items()}
COMMANDS |= {f"atom-{name}": kind for name, kind in PROGRAMS.items()}
LEARNER = ("pipelines/learner.py", "atom-learner")
"""A program whose next word is a command."""
# Flags of other programs that the pages name.
OTHERS = {
    "ray start": {"--address", "--block", "--head", "--num-cpus", "--num-gpus", "--start"},
    "ray job": {"--entrypoint-num-cpus", "--runtime-env", "--submission-id", "--working-dir"},
    "mlflow": {"--backend-store-uri", "--env-manager", "--host", "--port"},
    "the method of docs/add-a-method.md": {"--pull"},
    "any": {"--help"},
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page):
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page):
    """Names of a page's headings, as in the links of code hosts."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page):
    """Command lines of this project's programs, cut into words; those with placeholders are left out."""
    for _, block in FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "'" not in line or line.count("'") % 2 == 0 else []
            # `ray submit` puts "--" between the script and its flags.
            place = next((i for i, word in enumerate(words) if word in {*COMMANDS, *LEARNER}), None)
            if place is not None and not any("…" in word or "..." in word for word in words):
                rest = words[place + 1 :]
                ends = [i for i, word in enumerate(rest) if word in ("&&", "|", ">", ";")]
                rest = rest[: ends[0]] if ends else rest
                if words[place] in LEARNER:
                    yield SUB_COMMANDS[rest[0]], rest[1:]
                    continue
                yield COMMANDS[words[place]], rest[1:] if rest[:1] == ["--"] else rest


def flags_of(command):
    """Every flag a command takes."""
    flags = command().flags()
    names = {f"--{name.rstrip('_').replace('_', '-')}" for name in flags}
    switches = {name for name, flag in flags.items() if flag.info.annotation is bool}
    return names | {f"--no-{name.rstrip('_').replace('_', '-')}" for name in switches}


def unexplained(command, text):
    """Settings of a command whose flag the text does not have."""
    return [name for name in command().flags() if f"`--{name.rstrip('_').replace('_', '-')}`" not in text]


def flags_of_methods():
    """Flags that only some methods of this project have."""
    options = {name for method in registry.NAMES for name in registry.options_of(method).model_fields}
    return {f"--{name.rstrip('_').replace('_', '-')}" for name in options}


def known_flags():
    """Flags of the commands, of the benchmarks' scripts, and of other programs."""
    scripts = " ".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    own = flags_of_methods().union(*map(flags_of, [*PROGRAMS.values(), *SUB_COMMANDS.values()]))
    return own | set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', scripts)) | set().union(*OTHERS.values())


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(prose(page)):
        if urllib.parse.urlsplit(target).scheme:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page):
    """A name counts from the page, the root or a package; a bare one may also lie beside another that is named."""
    names = set(FILE.findall((ROOT / page).read_text()))
    rooms = [(ROOT / page).parent, ROOT, *(ROOT / name for name in ("pipelines", "apps", "atom", "tests"))]
    found = {name: room / name for name in names for room in rooms if (room / name).is_file()}
    beside = {path.parent for path in found.values()}
    missing = {name for name in names - set(found) if not any((folder / name).is_file() for folder in beside)}
    assert found
    assert not missing


@every_page
def test_flags_exist(page):
    unknown = set(FLAG.findall(page.read_text())) - known_flags()
    assert not unknown


@every_page
def test_command_lines_parse(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    own = OWN_METHOD.search(page.read_text())
    if own is not None:
        # What the page's commands name lies beside the reader.
        (tmp_path / own[2]).write_text(own[1])
        monkeypatch.chdir(tmp_path)
    for command, arguments in commands(page):
        if "--help" not in arguments:
            parse(command, arguments)


def test_command_lines_are_found():
    """The tests above must not pass because nothing was looked at."""
    assert sum(len(list(commands(page))) for page in PAGES) > 20


@every_page
def test_python_blocks_compile(page):
    for language, block in FENCE.findall(page.read_text()):
        if language == "python":
            compile(block, str(page), "exec")


def test_every_flag_is_explained():
    explained = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("distil", "evaluate"))
    for command in (DistillCommand, EvaluateCommand):
        assert unexplained(command, explained) == []
    assert {flag for flag in flags_of_methods() if f"`{flag}`" not in explained} == set()
    for name in ("compare", "nas", "continual", "audit"):
        assert unexplained(PROGRAMS[name], explained + (ROOT / "docs" / f"{name}.md").read_text()) == []


def test_every_flag_of_a_learner_is_explained():
    pages = {
        name: (ROOT / "docs" / f"{name}.md").read_text()
        for name in ("distil", "evaluate", "continual", "learner")
    }
    for command in SUB_COMMANDS.values():
        words = set(command.positional)
        assert [name for name in unexplained(command, "".join(pages.values())) if name not in words] == []
        own = {
            name
            for name, flag in command().flags().items()
            if flag.group in {"", "images", "choices", "gate"}
        }
        own -= {*CommandSettings().flags(), *words}
        assert [name for name in unexplained(command, pages["learner"]) if name in own] == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [("compare", {""}), ("nas", {"", "nas"}), ("continual", {"", "stream", "learner"}), ("audit", {""})],
)
def test_flags_of_an_application_are_explained_on_its_page(name, parts):
    """Those that mean the same everywhere are explained once, elsewhere."""
    command = PROGRAMS[name]
    own = {flag for flag, about in command().flags().items() if about.group in parts} - {
        *CommandSettings().flags()
    }
    page = (ROOT / "docs" / f"{name}.md").read_text()
    assert [flag for flag in unexplained(command, page) if flag in own] == []


def test_every_memory_learner_and_form_of_storage_is_explained():
    page = (ROOT / "docs" / "continual.md").read_text()
    for name in (NONE, RESERVOIR, *KINDS, DISTILLED, SET, *LEARNERS, *STORAGES):
        assert re.search(rf"^\| `{re.escape(name)}`( \(default\))? \|", page, re.MULTILINE), name


def test_every_proxy_and_named_space_is_explained():
    page = (ROOT / "docs" / "nas.md").read_text()
    for name in (*PROXIES, *SPACES):
        assert f"| `{name}` |" in page, name


def test_every_column_of_the_results_is_explained():
    page = (ROOT / "docs" / "nas.md").read_text()
    names = [field.name for field in dataclasses.fields(Row)]
    table = page.partition("| column of `results.parquet` |")[2].partition("\n\n")[0]
    assert [name for name in names if f"`{name}`" not in table] == []


def test_the_printed_space_of_ones_own_is_a_space(tmp_path):
    page = (ROOT / "docs" / "nas.md").read_text()
    before, _, after = page.partition("```python\n")
    assert before.rstrip().endswith("`my_space.py`:")
    (tmp_path / "my_space.py").write_text(after.partition("```")[0])
    space = load_space(f"{tmp_path}/my_space.py:networks", channels=3, image_size=(32, 24), num_classes=7)
    assert len(space.candidates) == 2
    for candidate in space.candidates:
        logits = space.build(candidate.name)(torch.zeros(2, 3, 32, 24))
        assert logits.shape == (2, 7)
        assert candidate.parameters
        assert candidate.multiply_adds


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_avalanche_example_runs_as_printed_and_resumes(tmp_path):
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed: pip install '.[avalanche]'")
    page = (ROOT / "docs" / "avalanche.md").read_text()
    (example,) = [
        block for name, block in FENCE.findall(page) if name == "python" and "from avalanche" in block
    ]
    (tmp_path / "example.py").write_text(example)
    command = [sys.executable, "-W", "ignore", "example.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = []
    for _ in range(2):
        finished = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        printed.append(finished.stdout.splitlines())
    assert len(printed[0]) == 6
    last = re.fullmatch(r"10 classes: (\d+\.\d) %, 100 images in 7200 bytes", printed[0][4])
    # Without any memory it ends at 10 %, with the two classes of the last experience at most at 20 %.
    assert last
    assert float(last[1]) > 60
    assert printed[0][:5] == printed[1][:5]
    assert printed[1][5] == "0.0 s of distillation" != printed[0][5]
    assert "DistilledMemory_Bytes/eval_phase/test_stream = 7200.0000" in (tmp_path / "log.txt").read_text()


def test_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "README.md":
            assert f"]({page.name})" in index, page.name


def test_every_recipe_is_listed():
    listed = (ROOT / "docs" / "reproducing.md").read_text()
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"](../recipes/{recipe.name})" in listed, recipe.name


def test_every_deviation_marked_in_the_code_is_listed():
    listed = (ROOT / "docs" / "deviations.md").read_text()
    for path in (*(ROOT / "atom").rglob("*.py"), *(ROOT / "apps").rglob("*.py")):
        if "DEVIATION(" in path.read_text():
            assert f"`{path.relative_to(ROOT).as_posix()}`" in listed, path.name


@pytest.mark.parametrize("ignore_file", [".rayignore", ".gitignore"])
def test_code_that_workers_import_is_uploaded(ignore_file, tmp_path):
    """A pattern "data/" without a slash before it would leave out atom/data/ as well."""
    if shutil.which("git") is None:
        pytest.skip("git reads the patterns")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copy(ROOT / ignore_file, tmp_path / ".gitignore")
    files = [
        path for folder in ("atom", "apps", "pipelines", "recipes") for path in (ROOT / folder).rglob("*.*")
    ]
    names = "\n".join(
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.suffix in (".py", ".yaml") and path.is_file()
    )
    ignored = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"],
        input=names,
        capture_output=True,
        text=True,
        check=False,
    )
    assert names
    assert ignored.stdout == ""


@pytest.mark.parametrize("name", ["job.log", "logs/job.log", "nohup.out"])
def test_log_that_grows_while_a_job_is_packed_stays_behind(name, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git reads the patterns")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".rayignore", tmp_path / ".gitignore")
    command = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--quiet", name]
    assert subprocess.run(command, check=False).returncode == 0


def test_runtime_env_holds_variables_only():
    content = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    assert set(content) == {"env_vars"}
    assert all(isinstance(value, str) for value in content["env_vars"].values())
