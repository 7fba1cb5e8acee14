"""`atom-learner` before it needs Ray: what it finds in a directory, and what it does about that."""

from pathlib import Path

from command_runs import run_here

SMALL = ("--network", "convnet-w8-d2", "--distil-network", "convnet-w8-d2", "--keep-tests", "2")


def test_init_leaves_the_files_of_a_project_alone(tmp_path: Path) -> None:
    own = [tmp_path / name for name in ("tests/test_mine.py", "work/thesis.txt", "memory/notes.txt")]
    for path in own:
        path.parent.mkdir()
        path.write_text("mine")
    code, _, errors = run_here("init", tmp_path, "--data", "digits", *SMALL, script="learner")
    assert code == 2
    assert errors.startswith(
        f"ConfigError: {tmp_path} holds memory/notes.txt, which is no part of a learner;"
    )
    assert errors.count("\n") == 1
    assert all(path.read_text() == "mine" for path in own)
    assert not (tmp_path / ".lock").exists()
