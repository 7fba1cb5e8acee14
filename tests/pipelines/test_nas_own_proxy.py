"""Joined and fitted proxies and a user's own, through the command: scored, judged, delivered, resumed, edited."""

import json
from pathlib import Path

import pytest
from command_runs import run, run_here

from apps.nas.space import load_space, sample
from apps.nas.table import Row, from_parquet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("ready_tables")]

PROXY = """
import torch

FACTOR = 1.0


def size(net, images, labels):
    torch.set_grad_enabled(False)
    width = next(net.parameters()).shape[0]
    if width == 64 and FACTOR == 1.0:
        raise ValueError("too wide for me")
    return FACTOR * sum(weight.numel() for weight in net.parameters())
"""
SMALL = (
    *("--space", "small", "--sample", 6, "--epochs", 2, "--whole-epochs", 1, "--ipc", 1, "--seeds", 1),
    *("--reference", "whole", "--reference-seeds", 1, "--resamples", 100),
)


def rows_of(output: Path) -> list[Row]:
    path = output / "results.parquet"
    return from_parquet(path.read_bytes(), where=str(path))


def test_an_own_proxy_and_one_that_joins_it_are_judged_and_an_edit_is_scored_anew(
    ray_cluster: None, tmp_path: Path
) -> None:
    file, output = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(PROXY)
    command = (*SMALL, "--proxies", f"random+{file}:size", f"{file}:size", "parameters", "--retrain", 1)
    code, lines, errors = run_here(*command, "--output", output, script="nas")
    assert code == 1, errors
    shown = "\n".join(lines)
    assert f"importing {file}:size" in shown
    wide = {row.network for row in rows_of(output) if "-w64-" in row.network}
    assert 0 < len(wide) < 6
    for network in wide:
        assert f"{network} (size): ValueError: too wide for me" in shown
    verdict = json.loads((output / "verdict.json").read_text())
    counts = {proxy["name"]: proxy["n"] for proxy in verdict["proxies"]}
    narrow = 6 - len(wide)
    assert counts == {"random+size": narrow, "size": narrow, "parameters": 6, "random": 6}
    by_name = {proxy["name"]: proxy for proxy in verdict["proxies"]}
    sizes, parameters = by_name["size"]["mean_scores"], by_name["parameters"]["mean_scores"]
    assert sizes == {network: parameters[network] for network in sizes}
    winner = json.loads((output / "winner" / "winner.json").read_text())
    assert winner["chosen_by"]["proxy"] == "random+size"
    assert by_name["random+size"]["mean_scores"][winner["network"]] == winner["chosen_by"]["score"]
    known = rows_of(output)
    assert {row.proxy for row in known} == {"size", "parameters", "random", "whole"}

    file.write_text(PROXY.replace("FACTOR = 1.0", "FACTOR = 2.0"))
    code, lines, errors = run(*command, "--output", output, script="nas")
    assert code == 0, errors
    again = rows_of(output)
    found = [row for row in again if row not in known]
    assert {(row.proxy, row.status) for row in found} == {("size", "done")}
    assert len(found) == 6
    verdict = json.loads((output / "verdict.json").read_text())
    sizes = next(proxy["mean_scores"] for proxy in verdict["proxies"] if proxy["name"] == "size")
    assert sizes == {network: 2 * parameters[network] for network in parameters}


def test_an_own_proxy_that_cannot_be_imported_is_refused_before_anything_is_written(
    ray_cluster: None, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (tmp_path / "broken.py").write_text("import os\nos._exit(3)\n")
    for name, said in (
        ("absent.py:size", "cannot import"),
        ("broken.py:size", "its worker ended without a word"),
    ):
        spec = f"{tmp_path / name}"
        code, _, errors = run_here(*SMALL, "--proxies", spec, "--output", output, script="nas")
        assert code == 2
        assert f"proxy {spec}: {said}" in errors
        assert not (output / "results.parquet").exists()


def test_a_fit_on_the_networks_that_a_table_knows_picks_among_all(ray_cluster: None, tmp_path: Path) -> None:
    small = load_space("small", channels=1, image_size=(8, 8), num_classes=10)
    networks = sample(small, 13, seed=0).candidates
    table, output = tmp_path / "known.csv", tmp_path / "out"
    rows = [f"{one.name},{10 + (one.parameters or 0) ** 0.3}" for one in networks[:-1]]
    table.write_text("\n".join(["network,accuracy", *rows]))
    command = (
        "--proxies",
        "fitted",
        "parameters",
        "naswot",
        "--space",
        "small",
        "--sample",
        13,
        "--seeds",
        1,
    )
    command += ("--reference", table, "--resamples", 100, "--retrain", 1, "--retrain-seeds", 1)
    code, lines, errors = run_here(*command, "--whole-epochs", 1, "--output", output, script="nas")
    assert code == 0, errors
    shown = " ".join(" ".join(lines).split())
    assert "The best 10 of 13 networks by fitted" in shown
    assert "fitted, a regression of the reference on the ranks by parameters and naswot, misses" in shown
    verdict = json.loads((output / "verdict.json").read_text())
    assert verdict["fit"]["n"] == 12
    assert verdict["fit"]["rmse"] < verdict["fit"]["rmse_of_mean"]
    assert verdict["proxies"][0]["n"] == 12
    assert "weights of fitted" in (output / "report.html").read_text()
    assert {row.proxy for row in rows_of(output)} == {"parameters", "naswot"}
    winner = json.loads((output / "winner" / "winner.json").read_text())
    assert winner["chosen_by"]["proxy"] == "fitted"
    assert winner["chosen_by"]["networks"] == 13
