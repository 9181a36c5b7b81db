"""Low rank and LoRA: against exact fractions, numerical simulations of each form, and published counts."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import LoraForm, WeightPrecision
from lowbit_cts.reference.low_rank import low_rank_enclosure

RNG = np.random.default_rng(5)
KINDS = {"float32": np.float32, "float16": np.float16}


def factors(format, m=4, k=24, r=5, n=6):
    kind = KINDS[format]
    shapes = {"x": (m, k), "w": (k, n), "down": (k, r), "up": (r, n)}
    return {name: RNG.standard_normal(shape).astype(kind).astype(np.float64) for name, shape in shapes.items()}


def exact(x, w, down, up, scaling, bias):
    """Return the real result, by fractions."""
    (m, k), (r, n) = x.shape, up.shape
    found = np.zeros((m, n), object)
    for i in range(m):
        hidden = [sum(Fraction(x[i, j]) * Fraction(down[j, s]) for j in range(k)) for s in range(r)]
        for c in range(n):
            dense = sum(Fraction(x[i, j]) * Fraction(w[j, c]) for j in range(k)) if w is not None else 0
            low = sum(hidden[s] * Fraction(up[s, c]) for s in range(r))
            found[i, c] = dense + Fraction(scaling) * low + (Fraction(bias[c]) if bias is not None else 0)
    return found


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("form", LoraForm)
def test_the_real_result_is_inside_and_near_the_middle(dense, form):
    parts = factors("float32")
    w, bias = (parts["w"] if dense else None), RNG.standard_normal(6)
    scaling = 0.75 if dense else 1.0
    found = low_rank_enclosure(
        parts["x"], w, parts["down"], parts["up"], scaling, bias, format="float32", lora_form=form
    )
    real = exact(parts["x"], w, parts["down"], parts["up"], scaling, bias)
    for index in np.ndindex(real.shape):
        assert Fraction(float(found.lo[index])) <= real[index] + Fraction(1, 10**6) * abs(real[index])
        assert found.lo[index] <= found.exact[index] <= found.hi[index]
        assert abs(Fraction(float(found.exact[index])) - real[index]) <= abs(real[index]) * Fraction(1, 2**23)


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("form", LoraForm)
@pytest.mark.parametrize("precision", [WeightPrecision.FLOAT32, WeightPrecision.ACTIVATIONS])
def test_every_simulated_computation_is_inside(format, form, precision):
    kind = KINDS[format]
    for _ in range(20):
        p = {name: array.astype(np.float32) for name, array in factors(format).items()}
        scaling, bias = np.float32(0.7), RNG.standard_normal(6).astype(np.float32)
        if form is LoraForm.MERGED:
            merged = (p["w"] + (p["down"] @ p["up"]) * scaling).astype(kind).astype(np.float32)
            y = (p["x"] @ merged + bias).astype(kind)
        elif precision is WeightPrecision.FLOAT32:
            y = (p["x"] @ p["w"] + (p["x"] @ p["down"]) @ p["up"] * scaling + bias).astype(kind)
        else:
            hidden = (p["x"] @ p["down"]).astype(kind).astype(np.float32)
            low = ((hidden @ p["up"]).astype(kind) * scaling).astype(kind)
            y = (p["x"] @ p["w"] + bias).astype(kind) + low
        found = low_rank_enclosure(
            *(p[name].astype(np.float64) for name in ("x", "w", "down", "up")), float(scaling), bias, format=format,
            lora_form=form, weight_precision=precision,
        )  # fmt: skip
        assert found.admits(y.astype(np.float64)).all()


def test_integers_have_one_result_in_every_form():
    x, w, down, up = (RNG.integers(-3, 4, shape).astype(float) for shape in ((3, 9), (9, 4), (9, 2), (2, 4)))
    results = [
        low_rank_enclosure(x, w, down, up, 0.5, None, format="float32", lora_form=form, weight_precision=precision)
        for form in LoraForm
        for precision in (WeightPrecision.FLOAT32, WeightPrecision.ACTIVATIONS)
    ]
    for found in results:
        np.testing.assert_array_equal(found.lo, x @ w + 0.5 * (x @ down @ up))
        np.testing.assert_array_equal(found.hi, found.lo)


def test_a_rank_left_out_falls_outside():
    p = factors("float16", k=64, r=8)
    found = low_rank_enclosure(p["x"], p["w"], p["down"], p["up"], 1.0, None, format="float16")
    for rank in range(8):
        less = np.delete(p["down"], rank, 1), np.delete(p["up"], rank, 0)
        y = (p["x"] @ p["w"] + p["x"] @ less[0] @ less[1]).astype(np.float16).astype(float)
        assert not found.admits(y).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": np.ones((23, 5))}, "down: has 23 rows, must have as many as x has columns (24)"),
        ({"up": np.ones((4, 6))}, "up: has shape (4, 6), must be (5, N) with the columns of w"),
        ({"scaling": np.nan}, "scaling: must be finite"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {**factors("float32"), "scaling": 1.0, **change}
    with pytest.raises(ValueError) as caught:
        low_rank_enclosure(given["x"], given["w"], given["down"], given["up"], given["scaling"], None, format="float32")
    assert message in str(caught.value)
