"""Codebooks: tables against published literals and bitsandbytes; nearest values against rationals, torch, searches."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import Boundary, Contraction, EqualValues, TieSide
from lowbit_cts.reference.codebooks import (
    CODEBOOKS,
    assign,
    assign_enclosure,
    bitsandbytes_fp4,
    codebook_values,
    codes_by_value,
    decode_codes,
    dynamic_map,
    normal_float,
    rank_enclosure,
)

# QLoRA, appendix E, to the digits of bitsandbytes' get_4bit_type("nf4").
NF4_LITERALS = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# The thresholds of dQuantizeNF4 and dQuantizeFP4 in bitsandbytes 0.50, csrc/kernels.cu.
NF4_CUDA_THRESHOLDS = [
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
    -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
    0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
]  # fmt: skip
FP4_CUDA_THRESHOLDS = [0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333]
NF4, FP4, DYNAMIC = CODEBOOKS["nf4"], CODEBOOKS["fp4_bitsandbytes"], CODEBOOKS["dynamic8"]


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


@pytest.mark.parametrize("contraction", [Contraction.FUSED, Contraction.SEPARATE])
def test_nf4_from_normal_quantiles_is_every_literal_exactly(contraction):
    table = normal_float(contraction=contraction)
    assert table.dtype == np.float32
    assert table.astype(np.float64).tolist() == NF4_LITERALS


def test_nf4_has_seven_negative_values_zero_and_eight_positive_ones():
    assert (np.sum(NF4 < 0), np.sum(NF4 == 0), np.sum(NF4 > 0)) == (7, 1, 8)
    assert NF4[7] == 0


def test_the_exact_outermost_probability_gives_other_last_digits():
    """1 - (1/32 + 1/30) / 2 is what 0.9677083 abbreviates; the literals need the abbreviation."""
    exact = normal_float(offset=1 - (1 / 32 + 1 / 30) / 2)
    assert np.any(exact != NF4)
    np.testing.assert_allclose(exact, NF4, rtol=0, atol=3e-7)


def test_fp4_is_the_table_of_bitsandbytes_and_not_e2m1():
    twelfths = [0, 0.0625, 8, 12, 4, 6, 2, 3]
    expected = [np.float32(v) / np.float32(12) for v in twelfths]
    assert FP4[:8].tolist() == [float(v) for v in expected]
    np.testing.assert_array_equal(FP4[8:], -FP4[:8])
    assert np.signbit(FP4[8])
    assert FP4[1] == pytest.approx(0.0052, abs=5e-5)
    literals = np.array([0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25], np.float32)
    np.testing.assert_array_equal(FP4[:8], literals, "the literals of csrc/cpu_ops.cpp and csrc/kernels.cu")
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
    assert set(np.round(FP4[:8], 6)) != set(np.round(e2m1, 6))


@pytest.mark.parametrize("contraction", [Contraction.FUSED, Contraction.SEPARATE])
def test_the_dynamic_map_holds_the_middles_of_each_decade(contraction):
    table = dynamic_map(contraction=contraction)
    assert table.dtype == np.float32
    assert table.shape == (256,)
    assert np.all(np.diff(table) > 0)
    np.testing.assert_array_equal(np.sort(-table[:-1]), table[:-1], "but for 1, symmetric about zero")
    tenth = Fraction(1, 10)
    exact = [Fraction(0), Fraction(1)]
    for i in range(7):
        part = (1 - tenth) / 2**i
        middles = [(tenth + part * (k + Fraction(1, 2))) * tenth ** (6 - i) for k in range(2**i)]
        exact += [*middles, *(-m for m in middles)]
    exact = np.array([float(v) for v in sorted(exact)])
    np.testing.assert_array_less(np.abs(table - exact), 2 * np.spacing(np.abs(exact.astype(np.float32))) + 1e-30)


def test_the_dynamic_map_depends_on_fused_arithmetic_in_the_last_places_of_42_values():
    fused, separate = dynamic_map(contraction="fused"), dynamic_map(contraction="separate")
    assert np.sum(fused != separate) == 42
    assert np.max(np.abs(fused - separate) / np.spacing(np.abs(fused))) == 2
    np.testing.assert_array_equal(DYNAMIC, fused)


def test_the_maps_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes").functional
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(functional.get_4bit_type("nf4", device="cpu").numpy(), NF4)
    np.testing.assert_array_equal(functional.get_4bit_type("fp4", device="cpu").numpy(), FP4)
    vector = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    expected = dynamic_map(contraction=Contraction.FUSED if vector else Contraction.SEPARATE)
    np.testing.assert_array_equal(functional.create_dynamic_map().numpy(), expected)
    assert 0 in np.sort(functional.create_normal_map().numpy())
    np.testing.assert_array_equal(np.unique(functional.create_normal_map().numpy()), NF4)


def test_the_thresholds_of_cuda_nf4_are_the_rounded_boundaries():
    rounded = (NF4[:-1] + NF4[1:]) * np.float32(0.5)
    np.testing.assert_array_equal(rounded, np.array(NF4_CUDA_THRESHOLDS, np.float32))
    for tie, step in ((TieSide.LOWER, 0), (TieSide.UPPER, 1)):
        codes = assign(rounded, "nf4", tie=tie, boundary=Boundary.ROUNDED)
        np.testing.assert_array_equal(codes, np.arange(15) + step)


def test_the_thresholds_of_cuda_fp4_miss_the_boundaries_by_up_to_14_units():
    """Between the two bitsandbytes on CUDA does not take the nearest value; a slack of 4e-7 covers it."""
    magnitudes = np.sort(FP4[:8])
    rounded = (magnitudes[:-1] + magnitudes[1:]) * np.float32(0.5)
    thresholds = np.array(FP4_CUDA_THRESHOLDS, np.float32)
    units = np.rint((rounded - thresholds) / np.spacing(rounded)).astype(int)
    assert units.tolist() == [-14, 0, 1, 1, 0, 6, 1]
    between = np.float32(0.5833332)  # above 0.583333, below 7/12
    assert decode_codes(assign(between, FP4), FP4) == np.float32(0.5)
    found = assign_enclosure(between, FP4, slack=4e-7)
    assert (found.lo, found.hi) == (np.float32(0.5), np.float32(8 / 12))


def nearest_by_rationals(x: np.ndarray, codebook: np.ndarray) -> list[list[int]]:
    """Return the nearest codes of each number, by exact distances: of each value the first, the lesser value first."""
    first = {Fraction(v): i for i, v in reversed(list(enumerate(codebook.tolist())))}
    values = sorted(first)
    found = []
    for number in map(Fraction, x.tolist()):
        distances = [abs(number - v) for v in values]
        least = min(distances)
        found.append([first[v] for v, d in zip(values, distances, strict=True) if d == least])
    return found


def declared(tied: list[int], codebook: np.ndarray, tie: TieSide) -> int:
    if len(tied) == 1:
        return tied[0]
    lower, upper = tied
    return {
        TieSide.LOWER: lower,
        TieSide.UPPER: upper,
        TieSide.TOWARD_ZERO: lower if abs(codebook[lower]) <= abs(codebook[upper]) else upper,
        TieSide.LOWEST_CODE: min(tied),
        TieSide.EVEN_CODE: upper if lower % 2 and upper % 2 == 0 else lower,
    }[tie]


def around_boundaries(codebook: np.ndarray) -> np.ndarray:
    """Return each boundary, as near as float64 and float32 come, its neighbours in both, and the values themselves."""
    values = np.unique(codebook)
    middles = (values[:-1].astype(np.float64) + values[1:]) / 2
    narrow = middles.astype(np.float32)
    down, up = np.float64(-np.inf), np.float64(np.inf)
    return np.concatenate(
        [
            middles, np.nextafter(middles, down), np.nextafter(middles, up), narrow,
            np.nextafter(narrow, np.float32(-np.inf)), np.nextafter(narrow, np.float32(np.inf)), values,
        ]
    ).astype(np.float64)  # fmt: skip


def tables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(80)
    return {
        "nf4": NF4,
        "fp4": FP4,
        "dynamic8": DYNAMIC,
        "shuffled": rng.permutation(NF4),
        "integers": np.array([3, -2, 0, 1, -1, 5, 5, -2], np.float32),
        "far apart": np.array([1.0, 1e-20, -1e-20, -1.0, 1e20], np.float32),  # boundaries beyond 53 bits
        "one": np.array([0.3], np.float32),
        "float64": rng.standard_normal(9),
    }


@pytest.mark.parametrize("name", tables())
def test_every_boundary_and_its_neighbours_go_to_the_nearest_value(name):
    codebook = tables()[name]
    x = around_boundaries(codebook)
    nearest = nearest_by_rationals(x, codebook)
    for tie in TieSide:
        assert assign(x, codebook, tie=tie).tolist() == [declared(tied, codebook, tie) for tied in nearest]


def test_ties_where_there_are_some_go_to_the_declared_side():
    codebook = np.array([-3.0, -1.0, 1.0, 2.0, 4.0])
    x = np.array([-2.0, 0.0, 1.5, 3.0])
    expected = {
        TieSide.LOWER: [0, 1, 2, 3],
        TieSide.UPPER: [1, 2, 3, 4],
        TieSide.TOWARD_ZERO: [1, 1, 2, 3],
        TieSide.LOWEST_CODE: [0, 1, 2, 3],
        TieSide.EVEN_CODE: [0, 2, 2, 4],
    }
    for tie in TieSide:
        assert assign(x, codebook, tie=tie).tolist() == expected[tie]
    shuffled = codebook[[4, 2, 0, 3, 1]]  # the code of each value: -3: 2, -1: 4, 1: 1, 2: 3, 4: 0
    assert assign(x, shuffled, tie="lowest_code").tolist() == [2, 1, 1, 0]
    assert assign(x, shuffled, tie="even_code").tolist() == [2, 4, 1, 0]


def test_fp4_ties_trap_8_go_down_on_cpu_and_toward_zero_on_cuda():
    """-0.8333 -> -1.0 on the CPU; the tree of the CUDA kernel compares magnitudes."""
    tie = np.float32((np.float32(-1) + FP4[10]) / 2)
    down = assign(tie, FP4, tie=TieSide.LOWER, boundary=Boundary.ROUNDED)
    inward = assign(tie, FP4, tie=TieSide.TOWARD_ZERO, boundary=Boundary.ROUNDED)
    assert (FP4[down], FP4[inward]) == (np.float32(-1), np.float32(-8 / 12))
    for codebook in (NF4, DYNAMIC):  # sorted: the lower code is the lower value
        x = around_boundaries(codebook)
        np.testing.assert_array_equal(assign(x, codebook, tie="lower"), assign(x, codebook, tie="lowest_code"))


def test_a_search_by_halves_goes_to_the_even_code():
    """dQuantize of bitsandbytes on CUDA halves the odd codes, ends on an even one, and leaves it only for strictly more
    or less than a boundary."""
    rounded = (DYNAMIC[:-1] + DYNAMIC[1:]) * np.float32(0.5)
    x = np.concatenate([rounded, np.nextafter(rounded, np.float32(-2)), np.nextafter(rounded, np.float32(2)), DYNAMIC])
    found = []
    for number in x:
        odd = np.searchsorted(DYNAMIC[1:255:2], number, side="left")  # odd codes below the number
        even = 2 * odd
        code = even
        if number > DYNAMIC[even]:
            code += number > rounded[even]
        elif even > 0:
            code -= number < rounded[even - 1]
        found.append(code)
    np.testing.assert_array_equal(assign(x, DYNAMIC, tie="even_code", boundary="rounded"), found)
    assert np.any(assign(x, DYNAMIC, tie="lower", boundary="rounded") != found)


def test_equal_values_of_fp4_two_zeros():
    x = np.array([-1e-3, -0.0, 0.0, 1e-3, -0.1, 0.1])
    codes = {rule: assign(x, FP4, equal_values=rule).tolist() for rule in EqualValues}
    assert codes["lowest_code"] == [0, 0, 0, 0, 14, 6]
    assert codes["by_sign"] == [8, 0, 0, 0, 14, 6]
    assert codes["by_side"] == [0, 0, 0, 8, 14, 6]


def test_equal_values_elsewhere():
    codebook = np.array([2.0, 1.0, 2.0, 2.0])
    x = np.array([1.9, 2.0, 2.1, 0.0])
    assert assign(x, codebook).tolist() == [0, 0, 0, 1]
    assert assign(x, codebook, equal_values="by_side").tolist() == [0, 0, 3, 1]
    assert assign(x, codebook, equal_values="by_sign").tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("name", ["nf4", "dynamic8", "shuffled", "float64"])
def test_rounded_boundaries_are_torch_bucketize(name):
    torch = pytest.importorskip("torch")
    codebook = tables()[name].astype(np.float32)
    order = np.argsort(codebook)
    values = codebook[order]
    bounds = torch.from_numpy((values[:-1] + values[1:]) / np.float32(2))
    x = np.concatenate([around_boundaries(codebook), np.random.default_rng(81).uniform(-1.1, 1.1, 500_000)])
    x = x.astype(np.float32)
    for tie, right in ((TieSide.LOWER, False), (TieSide.UPPER, True)):
        ranks = torch.bucketize(torch.from_numpy(x), bounds, right=right).numpy()
        np.testing.assert_array_equal(assign(x, codebook, tie=tie, boundary=Boundary.ROUNDED), order[ranks])


@pytest.mark.parametrize("name", ["nf4", "fp4", "dynamic8", "shuffled"])
def test_the_lowest_code_is_torch_argmin_of_distances(name):
    torch = pytest.importorskip("torch")
    codebook = tables()[name]
    x = np.concatenate([around_boundaries(codebook), np.random.default_rng(82).uniform(-1.1, 1.1, 20_000)])
    x = x.astype(np.float32).astype(np.float64)  # so that every difference is exact in float64
    codes = torch.argmin(torch.abs(torch.from_numpy(x)[:, None] - torch.from_numpy(codebook.astype(np.float64))), dim=1)
    np.testing.assert_array_equal(assign(x, codebook, tie=TieSide.LOWEST_CODE), codes.numpy())


def test_rounded_boundaries_may_move_a_number_to_its_second_nearest():
    """The float32 boundary of NF4's codes 8 and 9 is not their middle."""
    exact = (NF4[:-1].astype(np.float64) + NF4[1:]) / 2
    rounded = ((NF4[:-1] + NF4[1:]) * np.float32(0.5)).astype(np.float64)
    assert np.sum(exact != rounded) == 9
    x = rounded.astype(np.float32)
    moved = assign(x, NF4) != assign(x, NF4, boundary="rounded")
    np.testing.assert_array_equal(moved, exact < rounded)


def test_coinciding_rounded_boundaries_keep_the_order_of_the_values():
    a = np.float32(1) + np.arange(6, dtype=np.float32) * np.float32(
        2.0**-23
    )  # neighbours in float32: every middle is one of them
    for tie in (TieSide.LOWER, TieSide.UPPER):
        codes = assign(a, a, tie=tie, boundary=Boundary.ROUNDED)
        bounds = (a[:-1] + a[1:]) * np.float32(0.5)
        np.testing.assert_array_equal(
            codes, np.searchsorted(bounds, a, side="left" if tie is TieSide.LOWER else "right")
        )


def test_infinities_go_to_the_ends_and_a_nan_to_code_0():
    x = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32)
    assert assign(x, NF4).tolist() == [15, 0, 0, 15, 0]
    assert assign(x, FP4).tolist() == [3, 11, 0, 3, 11]
    found = assign_enclosure(x, FP4)
    assert found.lo.tolist() == [1, -1, -np.inf, 1, -1]
    assert found.hi.tolist() == [1, -1, np.inf, 1, -1]


@pytest.mark.parametrize("tie", TieSide)
def test_without_slack_one_value_is_admissible(tie):
    for codebook in tables().values():
        x = around_boundaries(codebook)
        found = assign_enclosure(x, codebook, tie=tie)
        np.testing.assert_array_equal(found.lo, found.hi)
        np.testing.assert_array_equal(found.exact, codebook.astype(np.float64)[assign(x, codebook, tie=tie)])


def test_slack_admits_what_is_nearest_to_a_number_within_it():
    rng = np.random.default_rng(83)
    for codebook in tables().values():
        x = np.concatenate([around_boundaries(codebook), rng.uniform(-1.2, 1.2, 5000)])
        slack = 10.0 ** rng.uniform(-9, -1, x.size)
        found = assign_enclosure(x, codebook, slack=slack)
        for position in (-1, -0.6, 0.3, 1):
            assert found.admits(codebook.astype(np.float64)[assign(x + position * slack, codebook)]).all()
        beyond = assign(x + 1.001 * slack + 1e-15, codebook)
        outside = codebook.astype(np.float64)[beyond] > codebook.astype(np.float64)[assign(x + slack, codebook)]
        assert not found.admits(codebook.astype(np.float64)[beyond])[outside & (slack > 1e-8)].any()


def test_codes_by_value_of_fp4_and_of_equal_values():
    assert codes_by_value(FP4).tolist() == [11, 10, 13, 12, 15, 14, 9, 8, 0, 1, 6, 7, 4, 5, 2, 3]
    assert codes_by_value(np.array([2.0, 0.0, 2.0, -0.0, -1.0, 0.0])).tolist() == [4, 3, 1, 5, 0, 2]
    for codebook in tables().values():
        order = codes_by_value(codebook)
        assert sorted(order.tolist()) == list(range(codebook.size))
        assert np.all(np.diff(codebook[order]) >= 0)


@pytest.mark.parametrize("rule", EqualValues)
@pytest.mark.parametrize("name", tables())
def test_ranks_admit_the_declared_code_alone_where_the_value_is_determined(name, rule):
    codebook = tables()[name]
    x = np.concatenate([around_boundaries(codebook), [-0.0]])
    codes = assign(x, codebook, equal_values=rule)
    ranks = rank_enclosure(assign_enclosure(x, codebook), codes, codebook)
    np.testing.assert_array_equal(ranks.lo, ranks.hi)
    np.testing.assert_array_equal(codes_by_value(codebook)[ranks.exact], codes)


def test_ranks_admit_every_code_of_every_admissible_value():
    x = np.array([-0.003, 0.2, np.nan])
    found = rank_enclosure(assign_enclosure(x, FP4, slack=0.01), assign(x, FP4), FP4)
    order = codes_by_value(FP4)
    admitted = [set(order[lo : hi + 1].tolist()) for lo, hi in zip(found.lo, found.hi, strict=True)]
    assert admitted == [{9, 8, 0, 1}, {6, 7}, set(range(16))]
    assert order[found.exact].tolist() == [9, 6, 0]


@pytest.mark.parametrize("name", ["nf4", "fp4", "dynamic8", "shuffled", "integers", "far apart", "one"])
def test_the_argmin_of_float32_distances_is_admitted(name):
    codebook = tables()[name]
    rng = np.random.default_rng(84)
    x = np.concatenate([around_boundaries(codebook), rng.uniform(-1.2, 1.2, 40_000)]).astype(np.float32)
    difference = x[:, None] - codebook
    with np.errstate(over="ignore", under="ignore"):
        distances = {1: np.abs(difference), 2: difference * difference}
    for roundings, distance in distances.items():
        found = assign_enclosure(x, codebook, distance_roundings=roundings)
        assert found.admits(codebook.astype(np.float64)[np.argmin(distance, axis=1)]).all()
        if name != "far apart":
            assert np.mean(found.lo < found.hi) < 0.05, "and away from boundaries it is alone"


def test_tiny_squares_underflow_and_all_look_alike():
    codebook = np.array([0.0, 1e-30, -1e-25], np.float32)
    x = np.array([1e-30, 1e-26], np.float32)
    with np.errstate(under="ignore"):
        codes = np.argmin((x[:, None] - codebook) ** 2, axis=1)
    assert codes.tolist() == [0, 0], "the first of three zero distances"
    assert assign_enclosure(x, codebook, distance_roundings=2).admits(codebook[codes].astype(np.float64)).all()


def test_decoding_is_a_table_lookup():
    codes = np.array([[0, 7], [15, 8]], np.uint8)
    np.testing.assert_array_equal(decode_codes(codes, "nf4"), NF4.astype(np.float64)[codes])
    for bad in (-1, 16):
        with raises("codes", r"must lie in \[0, 15\]; got"):
            decode_codes(np.array([3, bad]), NF4)


def test_bad_codebooks_are_refused_by_name():
    with raises("codebook", "'nf8' is unknown; admissible: nf4, fp4_bitsandbytes, dynamic8, or an array"):
        assign(np.zeros(3), "nf8")
    with raises("codebook", r"has shape \(2, 2\), must be \(n,\)"):
        codebook_values(np.zeros((2, 2)))
    with raises("codebook", r"has shape \(0,\), must be \(n,\)"):
        codebook_values(np.zeros(0))
    for bad in (np.nan, np.inf):
        with raises("codebook", "must be finite"):
            assign(np.zeros(3), np.array([0, bad]))


def test_a_choice_may_be_given_by_value_and_a_wrong_one_names_the_admissible():
    for name, kind in (("tie", TieSide), ("boundary", Boundary), ("equal_values", EqualValues)):
        for member in kind:
            np.testing.assert_array_equal(assign(NF4, NF4, **{name: member}), assign(NF4, NF4, **{name: member.value}))
        with raises(name, f"'sideways' is not admissible; admissible: {', '.join(kind)}"):
            assign(NF4, NF4, **{name: "sideways"})


def test_tables_are_read_only_and_inputs_left_untouched():
    for table in CODEBOOKS.values():
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1
    x, codebook = np.linspace(-1, 1, 9), np.array([1.0, -1.0, 0.0])
    kept = x.copy(), codebook.copy()
    for tie, rule in itertools.product(TieSide, EqualValues):
        assign(x, codebook, tie=tie, equal_values=rule)
    assign_enclosure(x, codebook, slack=0.1, distance_roundings=2)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(codebook, kept[1])
    assert bitsandbytes_fp4() is not FP4


def test_empty_and_shaped_arrays_keep_their_shape():
    for shape in ((0,), (2, 0), (3, 4), ()):
        x = np.zeros(shape)
        assert assign(x, NF4).shape == shape
        assert assign_enclosure(x, NF4, slack=0.1, distance_roundings=1).shape == shape
