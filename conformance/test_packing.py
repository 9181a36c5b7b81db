"""Packed codes: every code at every place, words known from elsewhere, ragged ends; the orders of scales."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.kernels import Case
from lowbit_cts.reference.formats import FORMATS
from lowbit_cts.reference.packing.packings import PACKINGS, pack, whole_blocks

_CODES = pytest.mark.operation("pack_codes", "unpack_codes")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _supported(
    examination: Examination, wanted: Callable[[dict[str, Any]], bool] = lambda parameters: True
) -> Iterator[dict[str, Any]]:
    """Yield the supported combinations of parameters that are wanted."""
    implementation = examination.implementation
    names = tuple(implementation.supports)
    found = [p for p in implementation.operation.combinations(implementation.supports, names) if wanted(p)]
    if not found:
        raise Refused("no such packing is declared as supported")
    yield from found


def _case(examination: Examination, parameters: dict[str, Any], codes: np.ndarray, what: str) -> Case:
    """Return a case of codes to be packed, or of the words that hold them."""
    operation = examination.implementation.operation
    codes = np.asarray(codes).astype(np.int8 if parameters["signed"] else np.uint8)
    arrays = {"codes": codes} if operation.name == "pack_codes" else {"words": pack(codes, **parameters)}
    return Case(operation, parameters, arrays, {"codes": what})


def _wrapped(codes: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
    """Return integers modulo the number of codes, as codes."""
    number = 1 << parameters["bits"]
    return codes % number - (number >> 1 if parameters["signed"] else 0)


@_CODES
def test_every_code_at_every_place(examination: Examination) -> None:
    """Every code comes back from, or goes to, every place of a block; its neighbours hold others."""
    for parameters in _supported(examination, lambda p: p["packing"] != "gptq_zeros_v1"):
        rows, columns = whole_blocks(parameters["packing"], parameters["bits"])
        if PACKINGS[parameters["packing"]].ragged:
            columns = 8 * 4
        m, k = np.meshgrid(np.arange(2 * rows), np.arange(2 * columns), indexing="ij")
        shifts = np.arange(1 << parameters["bits"])
        if PACKINGS[parameters["packing"]].axis == -2:  # a column a shift
            codes = np.arange(2 * rows)[:, None] + shifts
        elif rows > 1:  # tiles a shift below one another
            codes = np.concatenate([5 * m + k + shift for shift in shifts])
        else:
            codes = (k[0] + shifts[:, None]).reshape(len(shifts), -1)
        examination.once(_enclosed, _case(examination, parameters, _wrapped(codes, parameters), "every place"))


@_CODES
def test_zero_points_of_zero(examination: Examination) -> None:
    """GPTQ's version 1 stores 2**bits - 1 for a zero point of 0, and nothing is borrowed from those beside it."""
    for parameters in _supported(examination, lambda p: p["packing"] == "gptq_zeros_v1"):
        number = 1 << parameters["bits"]
        codes = np.resize([0, 1, number - 1, 0, 0, 2], (number, 96))
        codes[:, ::7] = np.arange(number)[:, None]
        examination.once(_enclosed, _case(examination, parameters, codes, "zeros among others"))


@_CODES
def test_codes_end_inside_a_word(examination: Examination) -> None:
    """Any number of codes a row is held by as few words as it needs, and what fills up the last is 0."""
    for parameters in _supported(examination, lambda p: PACKINGS[p["packing"]].ragged):
        carrier = PACKINGS[parameters["packing"]].carrier
        each = 8 * carrier.itemsize // parameters["bits"]
        most = (1 << (parameters["bits"] - parameters["signed"])) - 1
        for count in sorted({1, 2, 3, each, each + 1, 2 * each + 1, 3 * each + 2, 33}):
            codes = np.full((2, count), most)
            codes[1, :] = _wrapped(np.arange(count), parameters)
            examination.once(_enclosed, _case(examination, parameters, codes, f"{count} codes a row"))


@pytest.mark.operation("unpack_codes")
def test_words_of_ones(examination: Examination) -> None:
    """Words with all bits set, with the highest alone and with all but it: no sign is dragged into a code."""
    for parameters in _supported(examination):
        carrier = PACKINGS[parameters["packing"]].carrier
        rows, columns = whole_blocks(parameters["packing"], parameters["bits"])
        codes = np.zeros((rows, max(columns, 2 * 8 * carrier.itemsize)), np.uint8)
        shape = pack(codes, packing=parameters["packing"], bits=parameters["bits"]).shape
        top = 1 << (8 * carrier.itemsize - 1)
        words = np.resize(np.array([2 * top - 1, top, top - 1, 2 * top - 1], f"u{carrier.itemsize}"), shape)
        operation = examination.implementation.operation
        examination.once(_enclosed, Case(operation, parameters, {"words": words.view(carrier)}, {"words": "ones"}))


def _tile() -> np.ndarray:
    """Return Marlin's four tiles with 0 to 7 at the places of its first word: k, k + 8, and both 8 columns on."""
    codes = np.zeros((16, 64), np.uint8)
    codes[[0, 8, 0, 8, 1, 9, 1, 9], [0, 0, 8, 8, 0, 0, 8, 8]] = np.arange(8)
    return codes


_SEVEN_ELEVENTH = np.where(np.arange(32) == 10, 7, 0)[:, None]
_QUARTERS = np.repeat(np.arange(4), 32)[None]
_HALVES = {n: np.repeat([1, 2], n)[None] for n in (8, 16, 32)}

#: Codes and the words that hold them: (packing, bits, signed, codes, words).
_KNOWN: list[tuple[str, int, bool, np.ndarray, list[list[int]]]] = [
    ("gptq", 4, False, np.arange(8)[:, None], [[0x76543210]]),
    ("gptq", 2, False, np.arange(16)[:, None] % 4, [[0xE4E4E4E4]]),
    ("gptq", 3, False, _SEVEN_ELEVENTH, [[0xC0000000], [1], [0]]),
    ("gptq", 8, False, np.array([[1], [2], [3], [0xFC]]), [[0xFC030201]]),
    ("gptq_zeros_v1", 4, False, np.full((1, 8), 8), [[0x77777777]]),
    ("gptq_zeros_v1", 4, False, np.arange(1, 9)[None], [[0x76543210]]),
    ("gptq_zeros_v2", 4, False, np.full((1, 8), 8), [[0x88888888]]),
    ("gptq_zeros_v2", 4, False, np.arange(8)[None], [[0x76543210]]),
    ("awq", 4, False, np.arange(8)[None], [[0x75316420]]),
    ("marlin", 4, False, _tile(), [[0x76543210] + [0] * 127]),
    ("compressed_tensors", 4, True, np.arange(-8, 0)[None], [[0x76543210]]),
    ("compressed_tensors", 4, False, np.arange(8)[None], [[0x76543210]]),
    ("compressed_tensors", 3, True, _SEVEN_ELEVENTH.T - 4, [[0xC0000000, 1, 0]]),
    ("low_first", 4, False, np.arange(8)[None], [[0x10, 0x32, 0x54, 0x76]]),
    ("low_first", 4, True, np.array([[0, -1, -8, 7]]), [[0xF0, 0x78]]),
    ("low_first", 2, False, np.arange(4)[None], [[0xE4]]),
    ("low_first", 1, False, np.array([[1, 0, 0, 0, 0, 0, 0, 0]]), [[0x01]]),
    ("low_first", 6, False, np.array([[0, 0x3F, 0, 0]]), [[0xC0, 0x0F, 0x00]]),
    ("high_first", 4, False, np.arange(8)[None], [[0x01, 0x23, 0x45, 0x67]]),
    ("high_first", 4, True, np.array([[0, -1, -8, 7]]), [[0x0F, 0x87]]),
    ("high_first", 2, False, np.arange(4)[None], [[0x1B]]),
    ("high_first", 1, False, np.array([[1, 0, 0, 0, 0, 0, 0, 0]]), [[0x80]]),
    ("ggml_q4_0", 4, False, _HALVES[16], [[0x21] * 16]),
    ("ggml_nvfp4", 4, False, _HALVES[8], [[0x21] * 8]),
    ("ggml_q4_k", 4, False, _HALVES[32], [[0x21] * 32]),
    ("ggml_tq2_0", 2, False, _QUARTERS, [[0xE4] * 32]),
    ("bitnet_i2_s", 2, False, _QUARTERS, [[0x1B] * 32]),
]  # fmt: skip


@_CODES
def test_known_words(examination: Examination) -> None:
    """The words that the packing's library is known by: 0 to 7 is 0x76543210, AWQ's 0x75316420, and their like."""
    operation = examination.implementation.operation
    supported = list(_supported(examination))
    known = [entry for entry in _KNOWN if dict(zip(("packing", "bits", "signed"), entry, strict=False)) in supported]
    if not known:
        raise Refused("no packing with known words is declared as supported")
    for packing, bits, signed, codes, words in known:
        parameters = {"packing": packing, "bits": bits, "signed": signed}
        carrier = PACKINGS[packing].carrier
        pair = codes.astype(np.int8 if signed else np.uint8), np.array(words, f"u{carrier.itemsize}")
        given, expected = pair[0], pair[1].view(carrier)
        if operation.name == "unpack_codes":
            given, expected = expected, given
        argument, result = operation.arguments[0].name, operation.results[0].name
        case = Case(operation, parameters, {argument: given}, {"words": "known"})

        def equal(trial: Trial, expected: np.ndarray = expected, result: str = result) -> None:
            found = trial.call().results[0][result]
            trial.examination.tally.count(trial.case, found.size, 0.0, True)
            if not np.array_equal(found, expected):
                raise Violation(f"{result} are {_show(found)}, must be {_show(expected)}", trial.case)

        examination.once(equal, case)


def _show(array: np.ndarray) -> str:
    """Return the first eight elements that tell something: words as hexadecimal digits."""
    flat = array.ravel()[:8]
    more = ", ..." if array.size > 8 else ""
    if array.itemsize == 1 and array.dtype.kind == "i":
        return f"[{', '.join(map(str, flat))}{more}]"
    return f"[{', '.join(f'{word:#0{2 + 2 * array.itemsize}x}' for word in flat.view(f'u{array.itemsize}'))}{more}]"


@pytest.mark.operation("swizzle_scales")
def test_place_of_every_scale(examination: Examination) -> None:
    """Scale (m, c) of tile (i, j) stands at 512 (i C + j) + 16 (m % 32) + 4 (m // 32) + c, of C tiles in a row."""
    for format in examination.implementation.supports["format"]:
        for shape in ((128, 4), (256, 8), (384, 12)):
            places = np.arange(shape[0] * shape[1]).reshape(shape)
            for labels in (places % 113, places // 113):  # both digits of a place
                _swizzle(examination, format, labels)


@pytest.mark.operation("swizzle_scales")
def test_padding_is_zero(examination: Examination) -> None:
    """Rows and columns beyond the matrix are code 0, whatever the last scales and the memory beside them are."""
    for format in examination.implementation.supports["format"]:
        for shape in ((1, 1), (1, 4), (127, 4), (128, 3), (129, 5), (128, 1), (130, 4), (33, 2)):
            _swizzle(examination, format, np.full(shape, 0x77))


def _swizzle(examination: Examination, format: str, labels: np.ndarray) -> None:
    codes = labels.astype(FORMATS[format].carrier)
    case = Case(examination.implementation.operation, {"format": format}, {"scales": codes}, {"shape": labels.shape})
    examination.once(_enclosed, case)


#: The columns of a run, in the order of Marlin's scales.
_MARLIN_ORDERS = {
    "group": [i + 8 * j for i in range(8) for j in range(8)],
    "channel": [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)],
}


@pytest.mark.operation("permute_scales_marlin")
def test_order_of_marlin(examination: Examination) -> None:
    """Of groups columns 0, 8, ..., 56, 1, 9, ... of each 64; of channels 0, 1, 8, 9, 16, 17, 24, 25, 2, ... of 32."""
    for parameters in _supported(examination):
        order = np.array(_MARLIN_ORDERS[parameters["granularity"]])
        columns = 3 * len(order)
        rows = 1024 + np.arange(2)[:, None] * columns + np.arange(columns)  # integers that both formats tell apart
        scales = (rows if parameters["granularity"] == "group" else rows[0]).astype(np.uint16)
        scales = scales.view(FORMATS[parameters["format"]].carrier)  # codes, as numbers some positive ones
        case = Case(examination.implementation.operation, parameters, {"scales": scales}, {"order": "known"})
        expected = scales.reshape(*scales.shape[:-1], 3, len(order))[..., order].reshape(scales.shape)

        def equal(trial: Trial, expected: np.ndarray = expected) -> None:
            reply = trial.call().results[0]
            trial.enclosed(reply)
            trial.identical({"permuted": expected}, reply, "the known order")

        examination.once(equal, case)
