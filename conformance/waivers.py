"""Waivers: known upstream deviations, each with a reason, a link and an expiry; none is silent.

A waiver that no longer matches anything fails the run, so that the list cannot rot.
"""

import tomllib
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from lowbit_cts.kernels import Implementation


class WaiverError(ValueError):
    """A waiver file breaks a rule; the message names the waiver, the rule and the admissible values."""


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """A known deviation.

    Attributes
    ----------
    id : str
        Unique; evidence names it.
    backend, operation, implementation : str
        Patterns (``*``, ``?``) of names.
    property : str or list of str
        Names of properties, or patterns.
    versions : SpecifierSet
        Versions of the library that deviate, such as ``>=2.4,<2.14``.
    parameters : dict
        Parameter values the deviation needs; others are matched whatever they are.
    reason, link : str
    machines : str
        Where the deviation depends on the machine: on which. On others the waiver matches nothing, and need not.
    expires : date
        From this day on, a run that still needs the waiver fails.
    """

    id: str
    backend: str
    versions: SpecifierSet
    operation: str
    implementation: str = "*"
    property: str | list[str]
    parameters: dict[str, Any] = field(default_factory=dict)
    reason: str
    link: str
    machines: str = ""
    expires: date

    def covers(self, implementation: Implementation, property_name: str) -> bool:
        """Return whether the waiver speaks of a property of an implementation."""
        names = (
            (implementation.backend.name, self.backend),
            (implementation.operation.name, self.operation),
            (implementation.name, self.implementation),
        )
        properties = [self.property] if isinstance(self.property, str) else self.property
        return (
            all(fnmatchcase(name, pattern) for name, pattern in names)
            and any(fnmatchcase(property_name, pattern) for pattern in properties)
            and _within(implementation.backend.version, self.versions)
        )

    def excuses(self, parameters: dict[str, Any]) -> bool:
        """Return whether a failing case has the parameters the deviation needs."""
        return all(parameters.get(name) == value for name, value in self.parameters.items())


def _within(version: str, versions: SpecifierSet) -> bool:
    try:
        return versions.contains(Version(version).base_version, prereleases=True)
    except InvalidVersion:
        return not versions


def load(path: Path) -> list[Waiver]:
    """Return the waivers of a TOML file of ``[[waiver]]`` tables.

    Raises
    ------
    WaiverError
        For a file that is no TOML, an unknown or missing field, an expiry that is no date, a duplicate id.
    """
    try:
        tables = tomllib.loads(path.read_text()).get("waiver", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise WaiverError(f"{path.name}: {error}") from None
    waivers: list[Waiver] = []
    for table in tables:
        name = table.get("id", "a waiver without id")
        known = set(Waiver.__dataclass_fields__)
        required = known - {"implementation", "parameters", "machines"}
        wrong = sorted(set(table) - known) + sorted(required - set(table))
        if wrong:
            raise WaiverError(
                f"{path.name}: {name}: unknown or missing field {wrong[0]!r}; admissible: {', '.join(sorted(known))}"
            )
        if not isinstance(table["expires"], date):
            raise WaiverError(f"{path.name}: {name}: expires must be a date, such as 2027-01-31")
        try:
            waiver = Waiver(**{**table, "versions": SpecifierSet(table["versions"])})
        except InvalidSpecifier as error:
            raise WaiverError(f"{path.name}: {name}: versions: {error}") from None
        if any(waiver.id == other.id for other in waivers):
            raise WaiverError(f"{path.name}: {name}: the id is taken")
        waivers.append(waiver)
    return waivers
