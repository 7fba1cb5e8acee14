"""The predicted cost of a score."""

import pytest

from apps.nas.cost import OVERHEAD_MULTIPLY_ADDS, network_cost


def test_cost_grows_with_multiply_adds_from_an_overhead():
    assert network_cost(0) == OVERHEAD_MULTIPLY_ADDS
    assert network_cost(14_000_000) == OVERHEAD_MULTIPLY_ADDS + 14e6
    # The measured pair that the overhead was fitted to: 1.4 ms against 0.25 ms.
    ratio = network_cost(14_000_000) / network_cost(900_000)
    assert ratio == pytest.approx(1.4 / 0.25, rel=0.25)
