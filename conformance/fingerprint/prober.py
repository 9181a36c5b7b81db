"""The prober: all findings of one product."""

import re
from dataclasses import replace

from lowbit_cts.conformance.fingerprint import dependence, order
from lowbit_cts.conformance.fingerprint.accumulator import Accumulator
from lowbit_cts.conformance.fingerprint.describe import describe
from lowbit_cts.conformance.fingerprint.findings import Findings, NotDetermined
from lowbit_cts.conformance.fingerprint.probe import Probe, Unexpressible
from lowbit_cts.conformance.fingerprint.special import Special

_OF_NODES = (
    *("accumulator bits", "accumulator range", "accumulator", "rounding of sums", "alignment", "compensation"),
    *("products", "rounding of the output"),
)
_LONG = "order of long sums"


def fingerprint(probe: Probe, dependences: bool = True) -> Findings:
    """Return what probing tells of a product.

    Parameters
    ----------
    probe : Probe
    dependences : bool
        Whether to look at other shapes than the probe's, for what results depend on.

    Returns
    -------
    Findings
    """
    found = Findings()
    accumulator: Accumulator | None = None

    def short_order() -> str:
        nonlocal accumulator
        reasons = []
        for span in probe.spans:
            try:
                mask = order.masks(probe, span)
                tree = order.order(probe, mask)
            except (NotDetermined, Unexpressible) as error:
                reasons.append(f"terms at every {span.stride}th position: {error}" if span.stride > 1 else str(error))
                continue
            found.tree = tree.text()
            accumulator = Accumulator(probe, mask, tree)
            prefix = f"of every {span.stride}th term: " if span.stride > 1 else ""
            return prefix + describe(tree, span.stride)
        raise NotDetermined("; ".join(reasons))

    found.attempt("order", short_order)
    if accumulator is None:
        found.undetermined("the order of summation is not known", *_OF_NODES)
    else:
        _nodes(found, accumulator)
        if probe.long:
            found.attempt(_LONG, lambda: long_order(probe, accumulator.bits))
    _special(found, probe, accumulator)
    if dependences:
        dependence.find(found, probe)
    return found


def long_order(probe: Probe, bits: int | None) -> str:
    """Return the order of a sum of `probe.long` terms.

    Where a search takes long, since it is a row at a time or the output counts few units, every 8th term is looked at.
    """
    longer = replace(probe, length=probe.long)
    stride = 1 if probe.rows > 1 and probe.output.mantissa_bits >= 23 else 8
    mask = order.masks(longer, replace(longer.spans[0], stride=stride), bits)
    if mask.big - mask.unit < 60:
        raise NotDetermined("the formats do not hold a term that masks so many others")
    prefix = "of every 8th term: " if stride > 1 else ""
    return prefix + describe(order.order(longer, mask), stride)


def _nodes(found: Findings, accumulator: Accumulator) -> None:
    finds = (
        accumulator.precision, accumulator.range, accumulator.format, accumulator.rounding, accumulator.alignment,
        accumulator.compensation, accumulator.products, accumulator.output_rounding,
    )  # fmt: skip
    for name, find in zip(_OF_NODES, finds, strict=True):
        found.attempt(name, find)


def _special(found: Findings, probe: Probe, accumulator: Accumulator | None) -> None:
    place = None
    if accumulator is not None:
        place = next((p for p in sorted(accumulator.places, key=lambda p: p.size) if p.last is not None), None)
    known = re.match(r"(float32|float16|bfloat16|float64)$", found.values.get("accumulator", ""))
    special = Special(probe, place, known[1] if known else None)
    for name, find in (
        ("output overflow", special.output_overflow),
        ("subnormal inputs", special.subnormal_inputs),
        ("subnormal weights", special.subnormal_weights),
        ("subnormal products", special.subnormal_products),
        ("subnormal sums", special.subnormal_sums),
        ("subnormal outputs", special.subnormal_outputs),
        ("NaN", special.nan),
        ("NaN * 0", special.nan_times_zero),
        ("infinity", special.infinity),
        ("infinity - infinity", special.infinity_minus_infinity),
        ("infinity * 0", special.infinity_times_zero),
        ("sum of -0", special.negative_zeros),
    ):
        found.attempt(name, find)
