"""Algorithms on one layer, on every backend that is here: what theory says of each, whatever the kernels."""

import numpy as np
import pytest

from lowbit_cts.benches.workloads.algorithms import ALGORITHMS, Layer
from lowbit_cts.kernels.numpy import backend as numpy_backend

BACKENDS = {"numpy": numpy_backend}
try:
    from lowbit_cts.kernels.torch import backends as torch_backends

    BACKENDS["torch"] = torch_backends[0]
except ImportError:
    pass


@pytest.fixture(params=BACKENDS)
def library(request):
    return BACKENDS[request.param]


def layer(rows=256, outliers=1.0):
    """A layer of 64 columns in correlated samples, two channels as many times as large."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 64)) @ rng.standard_normal((64, 64))
    x[:, [5, 40]] *= outliers
    return Layer((rng.standard_normal((48, 64)) / 8).astype(np.float32), x.astype(np.float32))


def fitted(name, backend, to, bits=8, group_size=None):
    return ALGORITHMS[name].algorithm(backend, bits, group_size)(to)


def error(result, to):
    truth = to.x.astype(np.float64) @ to.w.T
    return np.sum((result.product(to.x) - truth) ** 2) / np.sum(truth**2)


def test_static_ranges_that_are_the_true_ones_give_what_dynamic_ones_do(library):
    """Calibrated on the one token that comes, bit for bit."""
    one = layer(rows=1)
    static, dynamic = (fitted(name, library, one).product(one.x) for name in ("W8A8 static", "W8A8 dynamic"))
    np.testing.assert_array_equal(static, dynamic)


@pytest.mark.parametrize("name", [name for name, entry in ALGORITHMS.items() if not entry.activations])
def test_of_weights_alone_the_product_is_that_of_what_the_codes_stand_for(library, name):
    to = layer()
    result = fitted(name, library, to, 4, 32)
    np.testing.assert_array_equal(result.product(to.x), to.x @ result.weights.T)
    assert 0 < error(result, to) < 0.05
    assert result.bits > 4 * to.w.size


def test_outliers_cost_static_int8_and_smoothing_wins_it_back(library):
    plain, loud = layer(), layer(outliers=100.0)
    naive, smooth = (error(fitted(name, library, loud), loud) for name in ("W8A8 static", "W8A8 static, SmoothQuant"))
    assert error(fitted("W8A8 static", library, plain), plain) < 1e-3
    assert smooth < 0.5 * naive


def test_outlier_columns_stay_in_float16(library):
    """With weights that int8 has, what is lost is what rounding the activations loses: LLM.int8() spares the others."""
    loud = layer(outliers=1000.0)
    w = np.rint(loud.w * 256).clip(-127, 127)
    w[:, 0] = 127
    loud = Layer((w / 256).astype(np.float32), loud.x / 64)  # all but the two channels stay below the threshold
    naive, mixed = (error(fitted(name, library, loud), loud) for name in ("W8A8 dynamic", "LLM.int8()"))
    assert mixed < 0.05 * naive


def test_activation_awareness_spares_channels_that_are_large(library):
    loud = layer(outliers=30.0)
    nearest, aware = (error(fitted(name, library, loud, 3, 32), loud) for name in ("RTN", "AWQ"))
    assert aware < 0.7 * nearest
