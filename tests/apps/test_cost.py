"""The predicted cost of a score."""

import pytest

from apps.nas.cost import OVERHEAD_MULTIPLY_ADDS, network_cost


def test_cost_grows_with_multiply_adds_and_has_a_default():
    assert network_cost(0, default=7.0) == OVERHEAD_MULTIPLY_ADDS
    assert network_cost(14_000_000, default=7.0) == OVERHEAD_MULTIPLY_ADDS + 14e6
    assert network_cost(None, default=7.0) == OVERHEAD_MULTIPLY_ADDS + 7
    # The measured pair that the overhead was fitted to: 1.4 ms against 0.25 ms.
    ratio = network_cost(14_000_000, default=0) / network_cost(900_000, default=0)
    assert ratio == pytest.approx(1.4 / 0.25, rel=0.25)
