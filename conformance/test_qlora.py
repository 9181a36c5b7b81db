"""Adapters merged, and beside 4-bit weights: every weight, absmax, nested block and rank, one at a time."""

from dataclasses import replace

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.fills import float_codes
from lowbit_cts.conformance.strategies.linear import activations
from lowbit_cts.kernels import Case
from lowbit_cts.reference.choices import LoraForm
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import FloatFormat, float_format
from lowbit_cts.reference.low_rank import low_rank_enclosure

_BOTH = ("merge_lora", "linear_qlora")
#: Several nested blocks of 256 in as many rows of weights.
_WIDE = {"M": 256, "K": 256, "N": 70, "R": 4}


def _enclosed(trial: Trial, case: Case | None = None) -> None:
    case = case or trial.case
    trial.enclosed(trial.call(case).results[0], case)


def _with(case: Case, **numbers: np.ndarray) -> Case:
    """Return the case with other numbers for some arguments."""
    arrays = dict(case.arrays)
    for name, values in numbers.items():
        fmt = case.format(name)
        arrays[name] = float_codes(values, fmt.name) if isinstance(fmt, FloatFormat) else values.astype(fmt.carrier)
    return replace(case, arrays=arrays)


def _zeros(case: Case, name: str) -> np.ndarray:
    return np.zeros(case.array(name).shape)


def _one_rank(case: Case, rank: int) -> dict[str, np.ndarray]:
    """Return factors of one rank, whose product is of powers of two, no two of neighbours alike."""
    down, up = _zeros(case, "down"), _zeros(case, "up")
    down[rank], up[:, rank] = np.exp2(np.arange(down.shape[1]) % 5 - 2.0), np.exp2(np.arange(len(up)) % 3 - 1.0)
    return {"down": down, "up": up}


@pytest.mark.operation("merge_lora")
def test_an_adapter_of_nothing_leaves_the_weights(examination: Examination) -> None:
    """With up (LoRA's start), down or the scaling zero the weights come back bit for bit."""

    def check(trial: Trial) -> None:
        case = trial.case
        for name in ("up", "down", "scaling"):
            nothing = _with(case, **{name: _zeros(case, name)})
            trial.identical(
                {"merged": case.array("w")}, trial.call(nothing).results[0], f"weights, and {name} of zeros"
            )

    examination.for_all(check, sizes={"N": 33, "K": 65, "R": 8}, share=0.5)


@pytest.mark.operation("merge_lora")
def test_a_merged_layer_computes_what_an_unmerged_one_does(examination: Examination) -> None:
    """Activations times the merged weights are what layer and adapter give, within what merging may round."""
    semantics = examination.implementation.semantics.choices(("float_accumulator", "weight_precision"))

    def check(trial: Trial) -> None:
        case = trial.case
        results = trial.call(case).results[0]
        w, down, up = (case.decoded(name, case.array(name)).T for name in ("w", "down", "up"))
        rng, format = np.random.default_rng(case.origin["seed"]), case.parameters["input_format"]
        x = round_to_format(activations(rng, (7, len(w)), "normal"), float_format(format))
        y = round_to_format(x @ case.decoded("merged", results["merged"]).T, float_format(format))
        layer = low_rank_enclosure(
            x, w, down, up, float(case.array("scaling")), None, format=format, lora_form=LoraForm.MERGED, **semantics
        )
        outside = ~layer.admits(y)
        trial.examination.tally.count(case, y.size, float(layer.ratio(y).max(initial=0.0)), True)
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            raise Violation(
                f"times row {at[0]} of activations row {at[1]} of the merged weights is {y[at]!r}, must be in "
                f"[{layer.lo[at]!r}, {layer.hi[at]!r}]", case,
            )  # fmt: skip

    examination.for_all(check, sizes={"N": 33, "K": 128, "R": 8}, share=0.5)


@pytest.mark.operation(*_BOTH)
def test_every_rank_of_an_adapter_counts(examination: Examination) -> None:
    """One rank at a time, each product of the factors under the scaling; and all of them together."""

    def check(trial: Trial) -> None:
        case = trial.case
        for rank in sorted({0, case.sizes["R"] // 2, case.sizes["R"] - 1}):
            one = _with(case, **_one_rank(case, rank))
            _enclosed(trial, _with(one, a=np.eye(*case.array("a").shape)) if "a" in case.arrays else one)
        _enclosed(trial)

    for rank in (1, 8, 33, 64):
        examination.for_all(check, regime="exact", sizes={"M": 64, "N": 19, "K": 64, "R": rank}, share=0.2)


@pytest.mark.operation("merge_lora")
def test_special_values_of_weights(examination: Examination) -> None:
    """NaN and infinities of the weights stay where they are, and reach no other."""
    examination.for_all(_enclosed, regime="special", sizes={"N": 17, "K": 40, "R": 4}, share=0.5)


@pytest.mark.operation("merge_lora")
def test_special_values_of_an_adapter(examination: Examination) -> None:
    """NaN and infinities of down reach the columns of theirs, those of up the rows, and no others."""

    def check(trial: Trial) -> None:
        case = trial.case
        down, up = (case.decoded(name, case.array(name)) for name in ("down", "up"))
        for bad in (np.nan, np.inf):
            of_down, of_up = down.copy(), up.copy()
            of_down[1, 3] = of_up[2, 1] = bad
            _enclosed(trial, _with(case, down=of_down))
            _enclosed(trial, _with(case, up=of_up))

    examination.for_all(check, sizes={"N": 9, "K": 40, "R": 4}, share=0.3)


@pytest.mark.operation("linear_qlora")
def test_every_weight_and_absmax_counts(examination: Examination) -> None:
    """One activation of 1 in each row reads one column of weights, each under its own absmax, without an adapter."""

    def check(trial: Trial) -> None:
        case = trial.case
        _enclosed(trial, _with(case, a=np.eye(case.sizes["M"], case.sizes["K"]), up=_zeros(case, "up")))

    for regime in ("exact", "full"):
        examination.for_all(check, regime=regime, sizes=_WIDE, share=0.3)


@pytest.mark.operation("linear_qlora")
def test_nested_blocks_run_through_the_rows(examination: Examination) -> None:
    """Every nested absmax another: it is that of so many absmax, row by row, whatever the rows' length."""

    def check(trial: Trial) -> None:
        case = trial.case
        nested = np.exp2(np.arange(case.array("nested_absmax").size) % 9 - 4.0)
        ones = np.full(case.array("absmax_codes").shape, 255)
        _enclosed(trial, _with(case, nested_absmax=nested, offset=np.zeros(())))
        whole = {"nested_absmax": nested, "absmax_codes": ones, "a": np.eye(case.sizes["M"], case.sizes["K"])}
        _enclosed(trial, _with(case, **whole, up=_zeros(case, "up")))

    for n in (70, 130):
        examination.for_all(check, regime="exact", sizes={"M": 5, "K": 320, "N": n, "R": 3}, share=0.3)


@pytest.mark.operation("linear_qlora")
def test_an_offset_belongs_to_every_absmax(examination: Examination) -> None:
    """With nested absmax of zero every absmax is the offset; with an offset of zero none has one."""

    def check(trial: Trial) -> None:
        case = trial.case
        eye = np.eye(case.sizes["M"], case.sizes["K"])
        _enclosed(trial, _with(case, a=eye, nested_absmax=_zeros(case, "nested_absmax"), up=_zeros(case, "up")))
        _enclosed(trial, _with(case, a=eye, offset=np.zeros(()), up=_zeros(case, "up")))

    examination.for_all(check, sizes={"M": 64, "K": 128, "N": 17, "R": 3}, share=0.3)


@pytest.mark.operation("linear_qlora")
def test_all_activations_of_a_layer_count(examination: Examination) -> None:
    """Sums of thousands of products come out as declared, of weights and of the adapter."""

    def check(trial: Trial) -> None:
        case = trial.case
        _enclosed(trial)
        _enclosed(trial, _with(case, a=np.ones(case.array("a").shape)))

    examination.for_all(check, regime="exact", sizes={"M": 2, "K": 4096, "N": 3, "R": 2}, share=0.3)


@pytest.mark.operation("linear_qlora")
def test_special_values_of_activations(examination: Examination) -> None:
    """NaN and infinities of the activations reach their rows, and no others."""
    examination.for_all(_enclosed, regime="special", sizes={"M": 6, "K": 128, "N": 5, "R": 4}, share=0.5)


@pytest.mark.operation("linear_qlora")
def test_a_nested_absmax_too_few(examination: Examination) -> None:
    """Without the last nested absmax, or the last column of absmax, a call must raise, and not read past their ends."""

    def check(trial: Trial) -> None:
        case = trial.case
        for name in ("nested_absmax", "absmax_codes"):
            short = trial.replaced(name, np.delete(case.array(name), -1, case.array(name).ndim - 1))
            reply = trial.call(short, lenient=True, expect_results=False)
            trial.examination.tally.count(short, 1, 0.0, True)
            if not reply.raised:
                raise Violation(f"accepted {name} of shape {short.array(name).shape}: must raise", short)

    examination.for_all(check, sizes={"M": 3, "K": 512, "N": 70, "R": 3}, variants=(), share=0.3)


@pytest.mark.operation("merge_lora")
def test_subnormal_weights(examination: Examination) -> None:
    """Subnormal weights of float16 are kept where the adapter is nothing, and count where it is not."""
    if "float16" not in examination.implementation.supports["input_format"]:
        raise Refused("float16 is not declared as supported, and subnormals of wider ranges may be flushed")

    def check(trial: Trial) -> None:
        case = trial.case
        place = case.array("w").shape
        tiny = np.exp2(-24.0 + np.arange(np.prod(place)) % 12).reshape(place)
        _enclosed(trial, _with(case, w=tiny, up=_zeros(case, "up")))

    fixed = {"input_format": "float16"}
    examination.for_all(check, sizes={"N": 9, "K": 40, "R": 4}, fixed=fixed, variants=(), share=0.3)
