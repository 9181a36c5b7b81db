"""The prober against products whose every property is known, since they are written here."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from typer.testing import CliRunner

from lowbit_cts.__main__ import app
from lowbit_cts.conformance.fingerprint import Probe, Span, Unexpressible, fingerprint, integers
from lowbit_cts.conformance.fingerprint.adapters import ADAPTERS, probe_of
from lowbit_cts.conformance.fingerprint.describe import describe
from lowbit_cts.conformance.fingerprint.examine import chosen_parameters, examine
from lowbit_cts.conformance.fingerprint.kernel import Kernel
from lowbit_cts.conformance.fingerprint.probe import expressed, span_of
from lowbit_cts.conformance.fingerprint.rounding import MODELS, matching
from lowbit_cts.conformance.fingerprint.tree import NotATree, grow
from lowbit_cts.conformance.host import Lost
from lowbit_cts.kernels import Case
from lowbit_cts.kernels.discovery import load_backends
from lowbit_cts.reference.choices import Rounding
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import FORMATS, float_format
from lowbit_cts.reference.rounding import fma_float32
from lowbit_cts.reports.evidence import append, read

F = np.float32
FLOAT32 = float_format("float32")


# Sums of terms (M, K, N) over K -------------------------------------------------------------------------------------


def in_turn(terms):
    acc = terms[:, 0]
    for k in range(1, terms.shape[1]):
        acc = acc + terms[:, k]
    return acc


def from_zero(terms):
    return in_turn(np.concatenate([np.zeros_like(terms[:, :1]), terms], axis=1))


def reversed_(terms):
    return in_turn(terms[:, ::-1])


def second_first(terms):
    """As x86's vdpbf16ps: of two neighbours the second is added first."""
    order = np.arange(terms.shape[1]) ^ 1
    return from_zero(terms[:, order])


def scrambled(terms):
    return in_turn(terms[:, np.random.default_rng(5).permutation(terms.shape[1])])


def pairwise(terms):
    k = terms.shape[1]
    return terms[:, 0] if k == 1 else pairwise(terms[:, : k // 2]) + pairwise(terms[:, k // 2 :])


def folded(terms):
    k = terms.shape[1]
    return terms[:, 0] if k == 1 else folded(terms[:, : k // 2] + terms[:, k // 2 :])


def blocked(size):
    def add(terms):
        blocks = [in_turn(terms[:, i : i + size]) for i in range(0, terms.shape[1], size)]
        return in_turn(np.stack(blocks, axis=1))

    return add


def lanes(count, over=folded):
    def add(terms):
        m, k, n = terms.shape
        return over(in_turn(terms.reshape(m, k // count, count * n)).reshape(m, count, n))

    return add


def rounded_by(name, rounding=Rounding.HALF_EVEN):
    fmt = float_format(name)

    def add(terms):
        acc = round_to_format(terms[:, 0], fmt, rounding)
        for k in range(1, terms.shape[1]):
            acc = round_to_format(acc + terms[:, k], fmt, rounding)
        return acc

    return add


def sums_flushed(terms):
    acc = flush(terms[:, 0])
    for k in range(1, terms.shape[1]):
        acc = flush(acc + flush(terms[:, k]))
    return acc


def kahan(terms):
    acc, lost = np.zeros_like(terms[:, 0]), np.zeros_like(terms[:, 0])
    for k in range(terms.shape[1]):
        y = terms[:, k] - lost
        t = acc + y
        lost = (t - acc) - y
        acc = t
    return acc


def neumaier(terms):
    acc, lost = np.zeros_like(terms[:, 0]), np.zeros_like(terms[:, 0])
    for k in range(terms.shape[1]):
        x = terms[:, k]
        t = acc + x
        lost += np.where(np.abs(acc) >= np.abs(x), (acc - t) + x, (x - t) + acc)
        acc = t
    return acc + lost


def cut_chunks(bits, size, guard=0):
    """Terms of a chunk and the running sum cut some bits below the largest, added exactly in float64, and cut again."""

    def add(terms):
        acc = np.zeros_like(terms[:, 0])
        for start in range(0, terms.shape[1], size):
            parts = np.concatenate([acc[:, None], terms[:, start : start + size]], axis=1)
            top = np.frexp(np.abs(parts).max(axis=1))[1]
            unit = np.ldexp(1.0, top - bits - guard)[:, None]
            acc = (np.trunc(parts / unit) * unit).sum(axis=1)
            step = np.ldexp(1.0, np.frexp(acc)[1] - bits)
            acc = np.trunc(acc / step) * step
        return acc

    return add


def exactly_added(parts):
    """Return the exact sum of float64 numbers, rounded once to float32: to odd in float64 first."""
    if not np.all(np.isfinite(parts)):
        return np.sum(parts)
    total = math.fsum(parts)
    rest = math.fsum([*parts, -total])
    if rest and not np.float64(total).view(np.int64) & 1:
        total = math.nextafter(total, math.copysign(math.inf, rest))
    return F(total)


def exact_chunks(size, fused=True):
    """Chunks of exact sums rounded to float32, with the running sum among their terms or added to it."""

    def add(terms):
        m, k, n = terms.shape
        y = np.zeros((m, n), F)
        for row, column in np.ndindex(m, n):
            acc = F(0)
            for start in range(0, k, size):
                chunk = terms[row, start : start + size, column].astype(np.float64)
                acc = exactly_added([acc, *chunk]) if fused else acc + exactly_added(chunk)
            y[row, column] = acc
        return y

    return add


# Products of float32 matrices ---------------------------------------------------------------------------------------


def of_terms(add, dtype=F, before=lambda x: x, after=lambda y: y):
    """Return a product whose terms are rounded to a type, and added by `add`."""

    def product(a, b):
        a, b = before(a.astype(dtype)), before(b.astype(dtype))
        return after(add(a[:, :, None] * b[None]))

    return product


def fma_in_turn(a, b):
    acc = np.zeros((a.shape[0], b.shape[1]))
    for k in range(a.shape[1]):
        acc = fma_float32(a[:, k, None], b[None, k], acc)
    return acc


def flush(x):
    return np.where(np.abs(x) < FLOAT32.smallest_normal, x * 0, x)


def saturated(y):
    return np.clip(y, -FLOAT32.maximum, FLOAT32.maximum).astype(F)


def by_batch(a, b):
    """One row another way than several."""
    return of_terms(in_turn if len(a) == 1 else lanes(8))(a, b)


def by_column(a, b):
    return by_row(b.T, a.T).T


def skipping(a, b):
    y = np.zeros((a.shape[0], b.shape[1]), F)
    for k in range(a.shape[1]):
        y = y + np.where(b[k] == 0, F(-0.0), a[:, k, None].astype(F) * b[k].astype(F))
    return y


def by_row(a, b):
    y = of_terms(in_turn)(a, b)
    y[16:] = of_terms(reversed_)(a[16:], b)
    return y


class Restless:
    """Every call in another order."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, a, b):
        order = self.rng.permutation(a.shape[1])
        return of_terms(in_turn)(a[:, order], b[order])


def in_float8(a, b):
    return cut_chunks(14, 32)(a[:, :, None] * b[None])


#: What is found of float32 terms added to each other one after the other in float32.
PLAIN = {
    "order": "sequential",
    "accumulator bits": "24",
    "accumulator range": "overflows at 2^128",
    "accumulator": "float32",
    "rounding of sums": "half to even",
    "alignment": "nothing to align: two parts at a time",
    "compensation": "none",
    "products": "rounded to 24 bits before they are added",
    "rounding of the output": "nothing to round: sums have no more bits than the output",
    "output overflow": "infinity",
    "subnormal inputs": "kept",
    "subnormal weights": "kept",
    "subnormal products": "kept",
    "subnormal sums": "kept",
    "subnormal outputs": "kept",
    "NaN": "propagates, in its row alone",
    "NaN * 0": "NaN",
    "infinity": "propagates",
    "infinity - infinity": "NaN",
    "infinity * 0": "NaN",
    "sum of -0": "-0",
    "run": "the same bits",
    "batch size": "independent",
    "row in the batch": "independent",
    "column": "independent",
}
UNKNOWN = "not determined"


def scrambled_name(n):
    order = np.random.default_rng(5).permutation(n)
    order[:2] = sorted(order[:2])  # they commute
    return f"sequential, in the order {' '.join(map(str, order[:12]))} ..."


FROM_ZERO = {"sum of -0": "+0"}
NO_ORDER = dict.fromkeys(list(PLAIN)[:9], UNKNOWN) | {"subnormal products": UNKNOWN, "subnormal sums": UNKNOWN}
FUSED = "fused: exact, rounded with the sum (to {} bits)"
NO_RUN = {"compensation": UNKNOWN}


@dataclass(frozen=True)
class Synthetic:
    """A product, the formats it takes and returns, and where its findings differ from those of `PLAIN`."""

    product: Callable
    findings: dict[str, str] = field(default_factory=dict)
    operands: str = "float32"
    output: str = "float32"
    shared: bool = False
    options: dict[str, int] = field(default_factory=dict)
    dependences: bool = True

    def probe(self):
        fmt, output = float_format(self.operands), float_format(self.output)

        def product(pairs):
            results = []
            for a, b in pairs:
                for name, operand in (("a", a), ("b", b)):
                    expressed(operand, fmt, name)
                with np.errstate(all="ignore"):
                    results.append(round_to_format(self.product(a, b), output))
            return results

        span = span_of(fmt, fmt if self.shared else None)
        return Probe(product, fmt, fmt, output, (span,), shared=self.shared, **self.options)

    def expected(self):
        return {**PLAIN, **self.findings}


SYNTHETIC = {
    "sequential": Synthetic(of_terms(in_turn)),
    "sequential from zero": Synthetic(of_terms(from_zero), FROM_ZERO),
    "reversed": Synthetic(of_terms(reversed_), {"order": "sequential, last first"}),
    "neighbours swapped": Synthetic(
        of_terms(second_first), {"order": "sequential, of two neighbours the second first", **FROM_ZERO}
    ),
    "scrambled": Synthetic(of_terms(scrambled), {"order": scrambled_name(64)}),
    "pairwise": Synthetic(of_terms(pairwise), {"order": "pairwise", **NO_RUN}),
    "folded": Synthetic(of_terms(folded), {"order": "pairwise, folded", **NO_RUN}),
    "blocks of 16": Synthetic(of_terms(blocked(16)), {"order": "4 blocks of 16: sequential inside, sequential over"}),
    "blocks of 32": Synthetic(of_terms(blocked(32)), {"order": "2 blocks of 32: sequential inside, sequential over"}),
    "blocks of 24": Synthetic(
        of_terms(blocked(24)),
        {"order": "2 blocks of 24: sequential inside, sequential over; then the 16 left over: sequential"},
    ),
    "8 lanes, folded": Synthetic(
        of_terms(lanes(8)), {"order": "8 strided lanes of 8: sequential inside, pairwise, folded over"}
    ),
    "4 lanes in turn": Synthetic(
        of_terms(lanes(4, in_turn)), {"order": "4 strided lanes of 16: sequential inside, sequential over"}
    ),
    "fma": Synthetic(fma_in_turn, {"products": FUSED.format(47), **FROM_ZERO}),
    "toward zero": Synthetic(
        of_terms(rounded_by("float32", Rounding.TOWARD_ZERO), np.float64),
        {
            "rounding of sums": "toward zero",
            "accumulator range": "saturates at 2^128",
            "products": FUSED.format(47),
            "output overflow": "saturates at 3.40282e+38",
        },
    ),
    "float16": Synthetic(
        of_terms(rounded_by("float16"), np.float64),
        {
            "accumulator bits": "11",
            "accumulator range": "overflows at 2^16",
            "accumulator": "float16",
            "products": FUSED.format(21),
        },
        operands="float16",
        output="float16",
    ),
    "float16 products": Synthetic(
        of_terms(in_turn, np.float16),
        {
            "accumulator bits": "11",
            "accumulator range": "overflows at 2^16",
            "accumulator": "float16",
            "products": "rounded to 11 bits before they are added",
        },
        operands="float16",
        output="float16",
    ),
    "bfloat16": Synthetic(
        of_terms(rounded_by("bfloat16"), np.float64),
        {"accumulator bits": "8", "accumulator": "bfloat16", "products": FUSED.format(15)},
        operands="bfloat16",
        output="bfloat16",
    ),
    "float32 of bfloat16": Synthetic(
        of_terms(in_turn),
        {"products": "exact (to 15 bits, the most the operands make)", "rounding of the output": "half to even"},
        operands="bfloat16",
        output="bfloat16",
    ),
    "14 bits in chunks of 32": Synthetic(
        in_float8,
        {
            "order": "chunks of 32, each added at once with the running sum",
            "accumulator bits": "14",
            "accumulator range": "sums of 2^17 stay finite",
            "accumulator": UNKNOWN,
            "rounding of sums": "terms cut at the last bit",
            "alignment": "terms are cut to 14 bits below the largest",
            "products": "exact (to 7 bits, the most the operands make)",
            "output overflow": UNKNOWN,
            "infinity": UNKNOWN,
            "infinity - infinity": UNKNOWN,
            "infinity * 0": UNKNOWN,
            "subnormal products": UNKNOWN,
            "subnormal sums": UNKNOWN,
            "subnormal outputs": UNKNOWN,
            **NO_RUN,
            **FROM_ZERO,
        },
        operands="float8_e4m3fn",
        shared=True,
    ),
    "24 bits in chunks of 8, cut after 2 more": Synthetic(
        lambda a, b: cut_chunks(24, 8, 2)(a[:, :, None] * b[None]),
        {
            "order": "chunks of 8, each added at once with the running sum",
            "rounding of sums": "terms cut 2 bits below the last, then toward zero",
            "alignment": "terms are cut to 26 bits below the largest",
            "products": "exact (to 21 bits, the most the operands make)",
            "accumulator range": "sums of 2^16 stay finite",
            "accumulator": "float32 (range seen up to 2^16)",
            "subnormal products": UNKNOWN,
            "subnormal sums": UNKNOWN,
            "subnormal outputs": UNKNOWN,
            "output overflow": UNKNOWN,
            **NO_RUN,
            **FROM_ZERO,
        },
        operands="float16",
    ),
    "chunks of 4, exact": Synthetic(
        of_terms(exact_chunks(4), np.float64),
        {
            "order": "chunks of 4, each added at once with the running sum",
            "alignment": "exact, as far as 71 bits",
            "products": FUSED.format(47),
            **NO_RUN,
            **FROM_ZERO,
        },
        options={"columns": 2, "length": 16},
        dependences=False,
    ),
    "chunks of 4, exact, added": Synthetic(
        of_terms(exact_chunks(4, fused=False), np.float64),
        {
            "order": "4 blocks of 4: at once inside, sequential over",
            "alignment": "exact, as far as 71 bits",
            "products": FUSED.format(47),
            **NO_RUN,
            **FROM_ZERO,
        },
        options={"columns": 2, "length": 16},
        dependences=False,
    ),
    "Kahan": Synthetic(
        of_terms(kahan),
        {
            "compensation": "compensated: the small terms are not lost",
            "infinity": "gives NaN and NaN",  # infinity less itself is what it thinks was lost
            "output overflow": "NaN",
            **FROM_ZERO,
        },
    ),
    "Neumaier": Synthetic(
        of_terms(neumaier), {**NO_ORDER, **FROM_ZERO, "infinity": "gives NaN and NaN", "output overflow": "NaN"}
    ),
    "float64": Synthetic(
        of_terms(in_turn, np.float64),
        {
            "accumulator bits": "53",
            "accumulator range": "sums of 2^128 stay finite",
            "accumulator": "float64 (range seen up to 2^128)",
            "products": "exact (to 47 bits, the most the operands make)",
            "rounding of the output": "half to even",
            "subnormal products": UNKNOWN,
            "subnormal sums": UNKNOWN,
        },
    ),
    "inputs flushed": Synthetic(
        of_terms(in_turn, before=flush),
        {"subnormal inputs": "flushed to zero", "subnormal weights": "flushed to zero"},
    ),
    "outputs flushed": Synthetic(of_terms(in_turn, after=flush), {"subnormal outputs": "flushed to zero"}),
    "sums flushed": Synthetic(
        of_terms(sums_flushed),
        dict.fromkeys(("subnormal products", "subnormal sums", "subnormal outputs"), "flushed to zero"),
    ),
    "saturating": Synthetic(
        of_terms(in_turn, after=saturated),
        {
            "output overflow": "saturates at 3.40282e+38",
            "infinity": "gives 3.40282e+38 and -3.40282e+38",
        },
    ),
    "skips zero weights": Synthetic(skipping, {"NaN * 0": "1", "infinity * 0": "1", **FROM_ZERO}),
    "by batch": Synthetic(
        by_batch,
        {"order": "8 strided lanes of 8: sequential inside, pairwise, folded over", "batch size": "differs: 1 | 2-64"},
    ),
    "by row": Synthetic(by_row, {"row in the batch": "rows 16-66 of 67 differ"}),
    "by column": Synthetic(by_column, {"column": "columns 16-66 of 67 differ"}),
    "restless": Synthetic(
        Restless(),
        {
            **NO_ORDER,
            "run": "differs from run to run",
            **dict.fromkeys(("batch size", "row in the batch", "column"), UNKNOWN),
        },
    ),
}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_what_is_known_is_found(name):
    synthetic = SYNTHETIC[name]
    found = fingerprint(synthetic.probe(), synthetic.dependences)
    asked = [key for key in PLAIN if synthetic.dependences or key not in list(PLAIN)[-4:]]
    assert found.values == {key: synthetic.expected()[key] for key in asked}
    assert found.reasons.keys() == {key for key, value in found.values.items() if value == UNKNOWN}


# Products of integers -----------------------------------------------------------------------------------------------


def integer_sums(a, b):
    return (a.astype(np.int32) @ b.astype(np.int32)).astype(np.float64)  # wraps


def saturating_sums(a, b):
    return np.clip(a.astype(np.float64) @ b.astype(np.float64), -(2.0**31), 2.0**31 - 1)


def pairs_in_16_bits(a, b):
    """As x86's vpmaddubsw: neighbours are added in 16 bits that saturate."""
    terms = a[:, :, None] * b[None]
    m, k, n = terms.shape
    pairs = np.clip(terms.reshape(m, k // 2, 2, n).sum(axis=2), -(2**15), 2**15 - 1)
    return pairs.sum(axis=1).astype(np.float64)


def float_sums(a, b):
    total = np.zeros((a.shape[0], b.shape[1]), F)
    for k in range(a.shape[1]):
        total += a[:, k, None].astype(F) * b[k].astype(F)
    return total.astype(np.float64)


def truncated_output(a, b):
    return round_to_format(integer_sums(a, b), FLOAT32, Rounding.TOWARD_ZERO)


INTEGERS = {
    "accumulator bits": "at least 27, exact",
    "accumulator range": "wraps at 2^31",
    "accumulator": "int32",
    "sums of neighbours": "exact",
    "rounding of the output": "nothing to round: sums are the output",
    "run": "the same bits",
    "batch size": "independent",
}
INTEGER_PRODUCTS = [
    (integer_sums, "int32", (-128, 127), {}),
    (integer_sums, "float32", (0, 255), {"rounding of the output": "half to even"}),
    (integer_sums, "float16", (-128, 127), {"rounding of the output": "half to even"}),
    (integer_sums, "bfloat16", (-128, 127), {"rounding of the output": "half to even"}),
    (truncated_output, "float32", (-128, 127), {"rounding of the output": "toward zero"}),
    (
        saturating_sums, "int32", (-128, 127),
        {"accumulator range": "saturates at 2^31", "accumulator": "int32, saturating"},
    ),
    (
        pairs_in_16_bits, "int32", (0, 255),
        {
            "sums of neighbours": "2 of 255 * -128 give -32768, not -65280",
            "accumulator range": "2^31 is exceeded", "accumulator": "exact beyond 31 bits",
        },
    ),
    (
        float_sums, "float32", (-128, 127),
        {
            "accumulator bits": "24", "accumulator range": UNKNOWN, "accumulator": "float32",
            "rounding of the output": UNKNOWN,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("product", "output", "a", "differing"),
    INTEGER_PRODUCTS,
    ids=[f"{product.__name__} {output}" for product, output, _, _ in INTEGER_PRODUCTS],
)
def test_what_is_known_of_integers_is_found(product, output, a, differing):
    fmt = None if output == "int32" else float_format(output)

    def multiply(pairs):
        results = [product(a, b) for a, b in pairs]
        return results if fmt is None else [round_to_format(y, fmt) for y in results]

    found = integers.fingerprint(integers.IntegerProbe(multiply, *a, fmt, rows=4, columns=4))
    assert found.values["order"] == UNKNOWN
    expected = {**INTEGERS, **differing}
    assert {name: found.values[name] for name in expected} == expected


# Trees --------------------------------------------------------------------------------------------------------------


def random_tree(rng, n):
    """Return a tree over shuffled leaves, nodes of two to five children, as nested lists."""
    nodes = list(rng.permutation(n))
    while len(nodes) > 1:
        count = min(len(nodes), int(rng.integers(2, 6)))
        taken = sorted(rng.choice(len(nodes), count, replace=False), reverse=True)
        nodes.append([nodes.pop(i) for i in taken])
    return nodes[0]


def leaves_of(node):
    return [leaf for child in node for leaf in leaves_of(child)] if isinstance(node, list) else [int(node)]


def size_of_common(node, i, j):
    """By the definition: the smallest part that holds both."""
    for child in node:
        if isinstance(child, list) and {i, j} <= set(leaves_of(child)):
            return size_of_common(child, i, j)
    return len(leaves_of(node))


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_is_grown_from_the_sizes_of_common_nodes(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 30))
    nested = random_tree(rng, n)
    tree = grow(n, lambda pivot, others: {other: size_of_common(nested, pivot, other) for other in others})
    for i in range(n):
        for j in range(i):
            assert tree.common[i, j] == size_of_common(nested, i, j)
    assert sorted(map(int, re.findall(r"\d+", tree.text()))) == list(range(n))


def test_sizes_that_contradict_each_other_are_no_tree():
    with pytest.raises(NotATree, match="3 terms are added where the counts say 4"):
        grow(3, lambda pivot, others: dict.fromkeys(others, 4))


def test_an_irregular_tree_has_a_digest_of_its_own():
    names = set()
    for seed in range(8):
        nested = random_tree(np.random.default_rng(seed), 24)
        names.add(describe(grow(24, lambda i, js, nested=nested: {j: size_of_common(nested, i, j) for j in js})))
    assert len(names) == 8
    assert all(name.startswith("a tree of depth ") for name in names)


# Roundings ----------------------------------------------------------------------------------------------------------

NAMES = {
    "half to even": Rounding.HALF_EVEN, "half away from zero": Rounding.HALF_AWAY,
    "half toward zero": Rounding.HALF_TOWARD_ZERO, "toward zero": Rounding.TOWARD_ZERO, "down": Rounding.DOWN,
    "up": Rounding.UP,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_roundings_are_the_reference_s(name):
    rng = np.random.default_rng(3)
    numbers = rng.integers(-(1 << 16), 1 << 16, 2000)
    expected = round_to_format(numbers.astype(np.float64), float_format("bfloat16"), NAMES[name])
    assert [MODELS[name]((int(x),), 8) for x in numbers] == expected.astype(int).tolist()


def test_no_two_roundings_agree_on_all_probes():
    offsets = (1, 2, 3, 4, 5, 6, 7, 12)
    probes = [(sign * (3 << 9), way * c) for sign in (1, -1) for way in (1, -1) for c in offsets]
    for name, add in MODELS.items():
        found = matching([(terms, add(terms, 8)) for terms in probes], 8)
        assert len(found) == 1, name


# Kernels ------------------------------------------------------------------------------------------------------------


class LostHost:
    """A host whose process never comes back."""

    def execute(self, call):
        return Lost("crashed", "the process ended in the call (killed by signal 11)")


def test_a_crash_is_a_reason_and_not_the_end():
    (backend,) = load_backends("numpy")
    implementation = next(i for i in backend.implementations if i.operation.name == "matmul_w4a16")
    chosen = chosen_parameters(implementation)[0]
    found = fingerprint(probe_of(implementation, chosen, 16, 16, Kernel(implementation, LostHost())))
    assert set(found.values.values()) == {UNKNOWN}
    assert "killed by signal 11" in found.reasons["order"]


@pytest.mark.parametrize("operation", ADAPTERS)
def test_adapters_make_the_numbers_of_a_probe(operation):
    """What a probe asks for is what the reference takes the arguments for."""
    (backend,) = load_backends("numpy")
    implementation = next(i for i in backend.implementations if i.operation.name == operation)
    for chosen in chosen_parameters(implementation):
        if implementation.operation.results[0].format(chosen) == "int32":
            continue  # no probe of floats
        given = []

        def call(arguments, parameters, given=given):
            given += arguments
            output = implementation.operation.results[0].format(parameters)
            return [np.zeros((16, 16), FORMATS[output].carrier) for _ in arguments]

        probe = probe_of(implementation, chosen, 16, 16, call)
        a, b = probe.draw(np.random.default_rng(0), 16, 256, 16)
        probe.product([(a, b)])
        arrays = {argument.name: given[0].get(argument.name) for argument in implementation.operation.arguments}
        (enclosure,) = Case(implementation.operation, chosen, arrays).enclosures(implementation.semantics).values()
        exact = round_to_format(a @ b, probe.output)
        assert np.all((enclosure.lo <= exact) & (exact <= enclosure.hi) | ~np.isfinite(enclosure.lo))
        assert np.any(np.isfinite(enclosure.lo))


@pytest.mark.parametrize(
    ("spec", "operations"), [("numpy", ("matvec_gguf", "matmul_int8")), ("torch", ("matvec_gguf",))]
)
def test_a_backend_has_the_same_fingerprint_twice(spec, operations):
    if spec == "torch":
        pytest.importorskip("torch")
    backend = load_backends(spec)[0]

    def wanted(implementation):
        return implementation.operation.name in operations

    first, second = (list(examine(spec, backend, "run", wanted, rows=(16,))) for _ in range(2))
    assert {record.operation for record in first} == set(operations)
    assert [record.findings for record in first] == [record.findings for record in second]
    layers = [record for record in first if record.operation == "matvec_gguf"]
    assert {record.findings["accumulator bits"] for record in layers} == {"24"}
    assert all(record.findings["order"] != UNKNOWN and record.tree for record in layers)
    products = [record for record in first if record.operation == "matmul_int8"]
    assert all(record.findings["accumulator"] == "int32" for record in products)


def test_the_command_probes_and_compares(tmp_path):
    runner = CliRunner()
    arguments = ["fingerprint", "--operation", "matvec_gguf", "--results", str(tmp_path)]
    probed = runner.invoke(app, [*arguments, "--backend", "numpy"])
    assert probed.exit_code == 0, probed.output
    assert "Fingerprints" in probed.output
    (file,) = tmp_path.rglob("fingerprints-*.jsonl")
    run, *records = read(file).records
    assert (run.kind, {record.kind for record in records}) == ("run", {"fingerprint"})
    same = runner.invoke(app, ["fingerprint", "--compare", str(file), str(tmp_path)])
    assert (same.exit_code, same.output.strip()) == (0, "No finding differs.")
    other = tmp_path / "other.jsonl"
    for record in records:
        append(other, replace(record, findings={**record.findings, "order": "pairwise"}))
    differing = runner.invoke(app, ["fingerprint", "--compare", str(file), str(other)])
    assert differing.exit_code == 1
    assert "pairwise" in differing.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--operation", "quantize_affine"],
            "--operation: 'quantize_affine' cannot be probed; admissible: matmul_w4a16",
        ),
        (["--compare", "numpy", "numpy", "--backend", "torch"], "--backend: stands alone"),
        (["--backend", "nowhere"], "--backend nowhere: no such backend"),
    ],
)
def test_a_wrong_command_is_one_message(arguments, message):
    result = CliRunner().invoke(app, ["fingerprint", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_where_elements_lack_the_range_one_of_each_block_is_looked_at():
    """Neighbours differ by 2**6 at most, as in FP4, blocks of 16 by as much as masks a float32 sum."""

    def product(pairs):
        results = []
        for a, b in pairs:
            blocks = np.abs(a).reshape(len(a), -1, 16)
            least = np.where(blocks == 0, np.inf, blocks).min(axis=-1, initial=np.inf)
            if np.any(blocks.max(axis=-1) > 2.0**6 * least):
                raise Unexpressible("the block has no scale for these")
            results.append(of_terms(blocked(64))(a, b).astype(np.float64))
        return results

    spans = (Span(1, -3, 3), Span(16, -60, 60))
    found = fingerprint(Probe(product, FLOAT32, FLOAT32, FLOAT32, spans, length=256), dependences=False)
    assert found.values["order"] == "of every 16th term: 4 blocks of 64: sequential inside, sequential over"
    assert found.values["accumulator bits"] == "24"
    assert found.values["rounding of sums"] == "half to even"
