"""Min-max scales and zero points against torch, onnxruntime, float32 arithmetic and published figures."""

import numpy as np
import pytest

from lowbit_cts.reference.affine import choose_qparams_enclosure, dequantize, quantize
from lowbit_cts.reference.choices import Division, RangeRule, ScaleRule, ZeroPointRule, ZeroScale
from lowbit_cts.reference.formats import integer_format
from lowbit_cts.reference.granularity import extremes

EPSILON = np.float32(2.0**-23)


def rows(seed: int, count: int = 64) -> np.ndarray:
    """Return rows of every kind: centred, one-sided, shifted, with an outlier, zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 32)) * 2.0 ** rng.integers(-12, 12, (count, 1))
    x[::5] = np.abs(x[::5])
    x[1::5] = -np.abs(x[1::5])
    x[2::5] += 3 * np.abs(x[2::5]).max(axis=1, keepdims=True)
    x[3::5, 4] *= 50
    x[-1] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("format", ["int8", "uint8"])
def test_torch_observers_are_enclosed(format, scheme):
    """Scale /127.5 where symmetric, zero point qmin - round(min / s), scale at least epsilon."""
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import observer as observers

    x = torch.from_numpy(rows(1))
    dtype = {"int8": torch.qint8, "uint8": torch.quint8}[format]
    choices = {
        "format": format, "mapping": scheme.replace("affine", "asymmetric"), "scale_rule": ScaleRule.HALF_RANGE,
        "zero_point_rule": ZeroPointRule.ROUND_QUOTIENT,
    }  # fmt: skip
    channels = [
        (observers.PerChannelMinMaxObserver(axis, dtype, getattr(torch, f"per_channel_{scheme}")),
         {"granularity": "axis", "axis": axis})
        for axis in (0, 1)
    ]  # fmt: skip
    tensor = (observers.MinMaxObserver(dtype, getattr(torch, f"per_tensor_{scheme}")), {"granularity": "tensor"})
    for observer, place in [*channels, tensor]:
        observer(x)
        scale, zero_point = (v.numpy().reshape(-1) for v in observer.calculate_qparams())
        found = choose_qparams_enclosure(x.numpy(), **choices, **place)
        assert found["scale"].admits(scale.astype(np.float64)).all()
        assert found["zero_point"].admits(zero_point).all()


@pytest.mark.parametrize("mapping", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("format", ["int8", "uint8", "int4", "uint4"])
def test_onnxruntime_compute_scale_zp_is_enclosed(format, mapping):
    pytest.importorskip("onnx")
    utilities = pytest.importorskip("onnxruntime.quantization.quant_utils")
    x = rows(2)
    qmin, qmax = (np.array(code, np.int32) for code in integer_format(format).codes())
    found = choose_qparams_enclosure(
        x, format=format, mapping=mapping, granularity="axis", axis=0, scale_rule=ScaleRule.HALF_RANGE,
        zero_point_rule=ZeroPointRule.ROUND_SUM, zero_scale=ZeroScale.ONE,
    )  # fmt: skip
    for i, row in enumerate(x[: len(x) if mapping == "asymmetric" else -1]):
        zero_point, scale = utilities.compute_scale_zp(row.min(), row.max(), qmin, qmax, mapping == "symmetric")
        assert found["scale"][i].admits(np.float64(scale)), (i, scale)
        assert found["zero_point"][i].admits(np.int64(zero_point)), (i, zero_point)


def test_ties_of_the_zero_point_fall_by_the_rule():
    """min / s = -1.5: qmin - round(min / s) and round(qmin - min / s) differ where qmin is odd."""
    x = np.array([[-1.5, 252.5]])  # s = 254 / 254 = 1 in the narrow range [-127, 127]
    codes = {}
    for rule in ZeroPointRule:
        found = choose_qparams_enclosure(x, format="int8", narrow_range=True, zero_point_rule=rule)
        assert found["scale"].lo == found["scale"].hi == 1
        assert found["zero_point"].lo == found["zero_point"].hi
        codes[rule] = int(found["zero_point"].exact)
    assert codes == {"round_quotient": -127 + 2, "round_sum": -126}  # round(-125.5) = -126


def signal_to_noise(x: np.ndarray, **choices: object) -> float:
    """Return decibels of x over the error of quantizing its rows."""
    format = choices["format"]
    place = {"granularity": "axis", "axis": 0}
    found = choose_qparams_enclosure(x, **choices, **place)
    scale, zero_point = found["scale"].exact.astype(np.float32), found["zero_point"].exact
    codes = quantize(x, scale, zero_point, format=format, **place)
    error = dequantize(codes, scale, zero_point, format=format, **place) - x
    return float(10 * np.log10(np.sum(np.square(x, dtype=np.float64)) / np.sum(np.square(error))))


@pytest.mark.parametrize(
    ("format", "mapping", "rule", "decibels"),
    [
        ("int8", "symmetric", ScaleRule.QMAX, 43.12),
        ("int8", "symmetric", ScaleRule.HALF_RANGE, 43.10),
        ("int8", "asymmetric", ScaleRule.QMAX, 43.80),
        ("int4", "symmetric", ScaleRule.QMAX, 17.94),
        ("int4", "symmetric", ScaleRule.HALF_RANGE, 18.49),
        ("int4", "asymmetric", ScaleRule.QMAX, 19.20),
        ("int3", "symmetric", ScaleRule.QMAX, 10.59),
    ],
)
def test_the_error_of_gaussian_rows_has_the_known_size(format, mapping, rule, decibels):
    x = np.random.default_rng(1).standard_normal((4096, 256)).astype(np.float32)
    assert signal_to_noise(x, format=format, mapping=mapping, scale_rule=rule) == pytest.approx(decibels, abs=0.01)


@pytest.mark.parametrize("format", ["int8", "uint8", "int4", "uint3", "int2"])
@pytest.mark.parametrize("mapping", ["symmetric", "asymmetric"])
def test_the_error_is_at_most_half_a_step_where_nothing_is_clipped(format, mapping):
    x = rows(3)
    place = {"granularity": "group", "group_size": 8}
    found = choose_qparams_enclosure(x, format=format, mapping=mapping, **place)
    scale, zero_point = found["scale"].exact.astype(np.float32), found["zero_point"].exact
    codes = quantize(x, scale, zero_point, format=format, **place)
    error = np.abs(dequantize(codes, scale, zero_point, format=format, **place) - x)
    low, high = integer_format(format).codes()
    unclipped = (codes > low) & (codes < high)
    step = np.repeat(scale.astype(np.float64), 8, axis=1)
    assert np.mean(unclipped) > 0.2
    assert np.all(error[unclipped] <= (0.5 + 2.0**-15) * step[unclipped])
    if mapping == "symmetric" and low < 0:
        assert np.all(error <= (0.5 + 2.0**-15) * step), "max|x| / qmax clips nothing"


# The enclosure against plain arithmetic -----------------------------------------------------------------------------

ARITHMETIC = {
    "float32": lambda a, b: np.float32(a) / np.float32(b),
    "reciprocal": lambda a, b: np.float32(a) * (np.float32(1) / np.float32(b)),
    "float64": lambda a, b: np.float32(np.float64(a) / np.float64(b)),
}


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("rule", ScaleRule)
@pytest.mark.parametrize("format", ["int8", "uint8", "int4", "uint5"])
def test_symmetric_scales_in_any_arithmetic_are_enclosed(format, rule, arithmetic):
    quotient = ARITHMETIC[arithmetic]
    x = rows(4)
    place = {"granularity": "axis", "axis": 0}
    qmin, qmax = integer_format(format).codes()
    z = 0 if qmin < 0 else (qmax + 1) // 2
    low, high = extremes(x, **place)
    largest = np.maximum(-low, high)
    scale = {
        "qmax": lambda: quotient(largest, qmax - z),
        "half_range": lambda: quotient(largest, (qmax - qmin) / 2),
        "no_clipping": lambda: np.maximum(
            quotient(np.maximum(-low, 0), z - qmin), quotient(np.maximum(high, 0), qmax - z)
        ),
    }[rule]()  # fmt: skip
    found = choose_qparams_enclosure(
        x, format=format, mapping="symmetric", scale_rule=rule, division=Division.RECIPROCAL, **place
    )
    assert found["scale"].admits(np.maximum(scale, EPSILON).astype(np.float64)).all()
    assert np.all(found["scale"].hi / found["scale"].lo < 1 + 10 * 2.0**-24)
    np.testing.assert_array_equal(found["zero_point"].lo, z)
    np.testing.assert_array_equal(found["zero_point"].hi, z)


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("range_rule", RangeRule)
@pytest.mark.parametrize("rule", ZeroPointRule)
def test_asymmetric_parameters_in_any_arithmetic_are_enclosed(rule, range_rule, arithmetic):
    quotient = ARITHMETIC[arithmetic]
    x = rows(5, count=500)
    place = {"granularity": "axis", "axis": 0}
    low, high = extremes(x, **place)
    if range_rule == "include_zero":
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    if arithmetic == "float64":
        low, high = low.astype(np.float64), high.astype(np.float64)
    scale = np.maximum(quotient(high - low, 255), EPSILON)
    t = quotient(low, scale)
    zero_point = -128 - np.rint(t) if rule == "round_quotient" else np.rint(np.float32(-128) - t)
    found = choose_qparams_enclosure(
        x, format="int8", zero_point_rule=rule, range_rule=range_rule, division=Division.RECIPROCAL, **place
    )
    assert found["scale"].admits(scale.astype(np.float64)).all()
    assert found["zero_point"].admits(np.clip(zero_point, -128, 127)).all()
    wide = found["zero_point"].hi - found["zero_point"].lo
    assert wide.max() <= 1
    assert np.mean(wide > 0) < 0.02, "a zero point is in doubt only near a tie"


@pytest.mark.parametrize("exponent", [-20, -7, 0, 10])
def test_where_the_division_is_exact_one_answer_is_admissible(exponent):
    step = 2.0**exponent
    cases = [
        ({"mapping": "asymmetric"}, [[-100 * step, 155 * step]], step, -28),
        ({"mapping": "asymmetric", "narrow_range": True}, [[-100 * step, 154 * step]], step, -27),
        ({"mapping": "symmetric"}, [[-127 * step, 3 * step]], step, 0),
        ({"mapping": "symmetric", "scale_rule": ScaleRule.HALF_RANGE}, [[-255 * step, 3 * step]], 2 * step, 0),
        ({"mapping": "symmetric", "scale_rule": ScaleRule.NO_CLIPPING}, [[-128 * step, 127 * step]], step, 0),
    ]
    for choices, x, scale, zero_point in cases:
        found = choose_qparams_enclosure(np.array(x), format="int8", **choices)
        for enclosure, expected in ((found["scale"], scale), (found["zero_point"], zero_point)):
            assert enclosure.lo == enclosure.exact == enclosure.hi == expected, choices


@pytest.mark.parametrize("zero_scale", ZeroScale)
@pytest.mark.parametrize("x", [[[-1e-44, 0.0]], [[-1e-40, 1e-40]], [[5.0, 5.0]], [[-5.0, -5.0]], [[1e-45, 1e-45]]])
def test_vanishing_ranges_give_scales_that_are_not_negative_and_codes(x, zero_scale):
    for mapping in ("symmetric", "asymmetric"):
        for range_rule in RangeRule:
            found = choose_qparams_enclosure(
                np.array(x, np.float32), format="int8", mapping=mapping, zero_scale=zero_scale, range_rule=range_rule
            )
            for enclosure, least, most in ((found["scale"], 0, np.inf), (found["zero_point"], -128, 127)):
                assert least <= enclosure.lo <= enclosure.exact <= enclosure.hi <= most


@pytest.mark.parametrize("format", ["int8", "uint8", "uint4"])
@pytest.mark.parametrize("range_rule", RangeRule)
def test_a_range_of_nothing_counts_as_one(format, range_rule):
    """As in ONNX's evaluator of DynamicQuantizeLinear, (1 / 255) of zeros; other ranges stay what they are."""
    qmin, qmax = integer_format(format).codes()
    x = np.array([[0.0, 0.0], [0.25, 0.5], [-1.0, 2.0], [3.0, 3.0]])
    choices = {"format": format, "granularity": "axis", "axis": 0, "range_rule": range_rule}
    found = choose_qparams_enclosure(x, **choices, zero_scale=ZeroScale.UNIT_RANGE)
    usual = choose_qparams_enclosure(x, **choices, zero_scale=ZeroScale.ZERO)
    assert found["scale"].exact[0] == np.float32(1) / np.float32(qmax - qmin)
    assert found["zero_point"].exact[0] == qmin
    for name in found:
        np.testing.assert_array_equal(found[name].exact[1:3], usual[name].exact[1:3])
    constant = np.float32(1) / np.float32(qmax - qmin)
    expected = constant if range_rule is RangeRule.AS_OBSERVED else usual["scale"].exact[3]
    assert found["scale"].exact[3] == expected
    symmetric = choose_qparams_enclosure(x, format=format, mapping="symmetric", zero_scale="unit_range",
                                         granularity="axis", axis=0)  # fmt: skip
    assert symmetric["scale"].exact[0] == np.float32(1) / np.float32(qmax - (0 if qmin else (qmax + 1) // 2))
