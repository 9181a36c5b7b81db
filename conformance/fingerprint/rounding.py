"""Roundings as integer arithmetic, to be told apart by what they make of a few sums.

A sum of integers is rounded to `bits` significand bits. The IEEE roundings see the exact sum; adders that align their
terms first cut each of them `guard` bits below the last bit of the largest, and see no more of it [1]_.

References
----------
.. [1] M. Fasi, N. J. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Comput. Sci.
   7:e330, 2021, §3.
"""

from collections.abc import Callable, Iterable
from functools import partial

#: Of a quotient and remainder (of a positive or negative number, toward zero): whether to go away from zero.
_AWAY: dict[str, Callable[[int, int, int, bool], bool]] = {
    "half to even": lambda q, twice, unit, negative: twice > unit or (twice == unit and q % 2 == 1),
    "half away from zero": lambda q, twice, unit, negative: twice >= unit,
    "half toward zero": lambda q, twice, unit, negative: twice > unit,
    "toward zero": lambda q, twice, unit, negative: False,
    "away from zero": lambda q, twice, unit, negative: twice > 0,
    "down": lambda q, twice, unit, negative: twice > 0 and negative,
    "up": lambda q, twice, unit, negative: twice > 0 and not negative,
    "to odd": lambda q, twice, unit, negative: twice > 0 and q % 2 == 0,
}


#: The roundings of the exact sum.
EXACT = tuple(_AWAY)


def rounded(value: int, bits: int, away: Callable[[int, int, int, bool], bool]) -> int:
    """Return an integer rounded to so many significand bits."""
    unit = 1 << max(0, abs(value).bit_length() - bits)
    q, r = divmod(abs(value), unit)
    size = (q + away(q, 2 * r, unit, value < 0)) * unit
    return -size if value < 0 else size


def _cut(terms: tuple[int, ...], bits: int, guard: int, floor: bool, after: str) -> int:
    unit = 1 << max(0, max(abs(t) for t in terms).bit_length() - bits - guard)
    kept = (t // unit if floor or t >= 0 else -(-t // unit) for t in terms)
    return rounded(sum(kept) * unit, bits, _AWAY[after])


def _exact(terms: tuple[int, ...], bits: int, name: str) -> int:
    return rounded(sum(terms), bits, _AWAY[name])


#: What an adder makes of terms, by name.
MODELS: dict[str, Callable[[tuple[int, ...], int], int]] = {
    **{name: partial(_exact, name=name) for name in _AWAY},
    **{
        f"terms cut {guard} bits below the last{' (down)' if floor else ''}, then {after}": partial(
            _cut, guard=guard, floor=floor, after=after
        )
        for guard in (0, 1, 2)
        for floor in ((False, True) if guard else (False,))  # cut at the last bit toward minus infinity is "down"
        for after in ("toward zero", "half to even")
    },
}

#: Without bits below the last, what is done afterwards is nothing.
_SAME = {
    f"terms cut 0 bits below the last, then {after}": "terms cut at the last bit"
    for after in ("toward zero", "half to even")
}


def matching(sums: Iterable[tuple[tuple[int, ...], int]], bits: int, among: Iterable[str] = tuple(MODELS)) -> list[str]:
    """Return the names of the roundings that make of all terms what was observed.

    Parameters
    ----------
    sums : iterable of (terms, result)
        Integers.
    bits : int
        Significand bits of the results.
    among : iterable of str
        The roundings to choose from.
    """
    sums = list(sums)
    names = [name for name in among if all(MODELS[name](terms, bits) == result for terms, result in sums)]
    return list(dict.fromkeys(_SAME.get(name, name) for name in names))
