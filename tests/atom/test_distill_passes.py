"""The same step in other ways: in passes that fit the cache, compiled, on another machine, for longer."""

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo
from distill_samples import (
    GOLDEN,
    HEIGHT,
    WIDTH,
    digits_losses,
    make_distiller,
    make_settings,
    run,
    run_in_float64,
)

from atom.methods import matching_loop
from atom.methods.matching_defaults import PASS_BYTES, REAL_BYTES, images_per_pass
from atom.methods.matching_loop import Matching
from atom.methods.method import Shape
from atom.settings import DSA_OPERATIONS

METHODS = ["atom", "spatial", "channel", "dm"]
DSA = "_".join(DSA_OPERATIONS)


@pytest.mark.parametrize("cache_images", [1, 2, 3, 100])
@pytest.mark.parametrize("method", METHODS)
def test_passes_that_fit_the_cache_add_up_to_the_whole_batch(
    method: str, cache_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(method=method, batch_real=6, dsa_strategy=DSA, ipc=2)
    monkeypatch.setattr(Matching, "_real_per_call", lambda self, num_classes: None)
    monkeypatch.setattr(Matching, "_classes_per_call", lambda self, num_classes: num_classes)
    whole = run_in_float64(settings, [0, 1, 2], 2)[1]
    monkeypatch.undo()
    monkeypatch.setattr(matching_loop, "CACHE_PIXELS", cache_images * HEIGHT * WIDTH)
    parts = run_in_float64(settings, [0, 1, 2], 2)[1]
    torch.testing.assert_close(torch.from_numpy(parts.images), torch.from_numpy(whole.images))


@pytest.mark.parametrize(
    ("batch", "cache_images", "expected"),
    [(128, 32, 32), (100, 32, 25), (6, 4, 3), (5, 100, 5), (7, 6, 7), (127, 32, 127), (1, 1, 1)],
)
def test_passes_are_equal_parts_of_the_real_batch(
    batch: int, cache_images: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching_loop, "CACHE_PIXELS", cache_images * HEIGHT * WIDTH)
    assert make_distiller(make_settings(batch_real=batch))._real_per_call(3) == expected


@pytest.mark.parametrize(
    ("size", "num_classes", "batch", "expected"),
    [(32, 10, 128, None), (64, 5, 128, None), (224, 1, 128, None), (224, 5, 128, 128), (448, 1, 128, 32)],
)
def test_large_images_go_through_a_gpu_in_parts(
    size: int, num_classes: int, batch: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, shape = make_settings(batch_real=batch, network="convnet"), Shape(3, size, size, 10)
    method = make_distiller(make_settings(batch_real=batch))
    monkeypatch.setattr(method, "device", torch.device("cuda"))
    monkeypatch.setattr(method, "_images_per_pass", images_per_pass(settings, shape))
    per_call = method._real_per_call(num_classes)
    assert per_call == expected
    assert (per_call or num_classes * batch) * REAL_BYTES * 128 * size**2 <= PASS_BYTES


def test_loss_goes_down() -> None:
    losses = np.array(digits_losses(30, init="noise", lr_img=0.3))
    assert losses[-8:].mean() < 0.9 * losses[:5].mean()


def test_first_losses_are_those_of_the_golden_curve() -> None:
    golden = np.array(json.loads(GOLDEN.read_text())["losses"])
    # Processors round differently, and the optimisation is chaotic: only the first iterations compare.
    np.testing.assert_allclose(np.array(digits_losses(len(golden))), golden, rtol=1e-3)


def test_any_number_of_compiled_distillers_lives_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo gives up a function that it has compiled eight times; here twice, and without code generation."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=2):
        for ipc in (1, 2, 3, 4):
            state = run(make_settings(compile="on", ipc=ipc), [0, 1], 1)
            assert state.images.shape[1] == ipc


COMPILED = {"compile": "on", "dsa_strategy": DSA, "ipc": 2}


@pytest.fixture(scope="module")
def compiled() -> Matching:
    """One for all tests here: to compile its step takes longer than anything else they do."""
    return make_distiller(make_settings(**COMPILED))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_iteration_equals_the_eager_one(compiled: Matching) -> None:
    given = make_settings(**COMPILED)
    eager = run(given.model_copy(update={"compile": "off"}), [0, 1], 1)
    other = run(given, [0, 1], 1, distiller=compiled)
    np.testing.assert_allclose(other.losses, eager.losses, rtol=1e-4)
    np.testing.assert_allclose(other.images, eager.images, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_another_process_and_another_call_compile_to_the_same_bits(compiled: Matching) -> None:
    settings = make_settings(**COMPILED)
    here, again = (run(settings, [0, 1], 3, distiller=compiled).images for _ in range(2))
    assert np.array_equal(here, again)
    folder = Path(__file__).parent
    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(folder.parents[1])!r}]\n"
        "import hashlib, torch; torch.set_num_threads(1)\n"
        "from distill_samples import make_settings, run\n"
        f"state = run(make_settings(**{COMPILED!r}), [0, 1], 3)\n"
        "print(hashlib.sha256(state.images.tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=250
    ).stdout
    assert elsewhere == hashlib.sha256(here.tobytes()).hexdigest() + "\n"
