"""The strategies: every operation has one, every regime is what it says, and special values are reached."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit_cts.conformance import fills, strategies
from lowbit_cts.conformance.strategies import draw_case
from lowbit_cts.kernels import OPERATIONS
from lowbit_cts.kernels.discovery import load_backends
from lowbit_cts.reference.formats import FORMATS, decode, float_format

IMPLEMENTATIONS = load_backends("numpy")[0].implementations


def test_every_operation_has_a_strategy():
    assert set(strategies.covered()) == set(OPERATIONS)


def cases(implementation, regime, count=60, **options):
    drawn = []

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def collect(data):
        drawn.append(draw_case(data.draw, implementation, {}, regime, **options))

    collect()
    return drawn


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.id)
@pytest.mark.parametrize("regime", ["full", "exact", "special"])
def test_drawn_cases_are_valid_inputs_of_the_reference(implementation, regime):
    for case in cases(implementation, regime, 30):
        for name, enclosure in case.enclosures(implementation.semantics).items():
            result = next(r for r in case.operation.results if r.name == name)
            assert enclosure.shape == case.result_shape(result)
            assert np.all((enclosure.lo <= enclosure.hi) | np.isnan(enclosure.exact))


def one_number(operation):
    """Return whether an operation gives a number or two a case."""
    return operation.startswith("choose_") or operation.endswith("_range")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.id)
def test_the_exact_regime_leaves_no_room(implementation):
    wide = total = 0
    for case in cases(implementation, "exact"):
        for enclosure in case.enclosures(implementation.semantics).values():
            wide += int(np.sum((enclosure.lo != enclosure.hi) & ~np.isnan(enclosure.exact)))
            total += enclosure.exact.size
    assert total > 500 or one_number(implementation.operation.name)
    # Ranges that miss a whole number of steps, and 16-bit inputs that are rounded, stay: few. LLM.int8()'s scale of
    # 1 / 127**2 always rounds, which now and then is seen in 16 bits.
    # Searches for the best of several ends compare rounded errors, of which two may be as good as alike.
    # Powers but square roots round, and so do all of AWQ's scales that are made of weights, too.
    # LSQ's first scale has a root in it that always rounds, but for int2.
    allowed = {
        "choose_qparams_affine": 0.35, "matmul_llm_int8": 0.1, "lsq_initial_scale": 1.0,
        "mse_range": 0.05, "entropy_range": 0.05, "smooth_weights": 0.3, "awq_scales": 0.9, "awq_clipping": 0.6,
    }.get(implementation.operation.name, 0.0)  # fmt: skip
    assert wide <= allowed * total


def test_ties_are_drawn_in_number():
    quantize = next(i for i in IMPLEMENTATIONS if i.operation.name == "quantize_affine")
    halves = total = 0
    for case in cases(quantize, "exact"):
        if case.parameters["granularity"] == "tensor" and case.parameters["input_format"] == "float32":
            quotient = case.arrays["x"].astype(np.float64) / float(case.arrays["scale"])
            halves += int(np.sum(quotient % 1 == 0.5))
            total += quotient.size
    assert halves > 0.15 * total > 0


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_boundaries_hold_every_midpoint(name):
    fmt = float_format(name)
    edges = set(fills.boundaries(fmt).tolist())
    values = decode(np.arange(fmt.largest_magnitude + 1), fmt)
    assert set(((values[:-1] + values[1:]) / 2).tolist()) <= edges
    assert -float(values[-1]) in edges


def test_neighbours_are_one_unit_apart():
    fmt = float_format("float32")
    x = np.array([1.0, -1.0, 448.0, 0.0])
    up = fills.neighbours(x, fmt, np.ones(4, int))
    assert np.array_equal(up, np.nextafter(x.astype(np.float32), np.float32([9, -9, 999, 1])))
    assert np.array_equal(fills.neighbours(x, fmt, np.zeros(4, int)), x.astype(np.float32))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_float_codes_stay_finite_where_the_numbers_are(name):
    found = decode(fills.float_codes(np.array([1e38, -1e38, np.inf, np.nan, 1.5]), name), FORMATS[name])
    assert np.isfinite(found[[0, 1, 4]]).all()
    assert np.isinf(found[2])
    assert np.isnan(found[3])
