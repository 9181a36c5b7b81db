"""Findings: what was determined, and of what was not, why."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lowbit_cts.conformance.fingerprint.probe import ProductFailed, Unexpressible

NOT_DETERMINED = "not determined"


class NotDetermined(Exception):
    """The probes cannot tell; the message says why."""


@dataclass
class Findings:
    """What is known of a product.

    Attributes
    ----------
    values : dict of str to str
        The findings by name, in the order they were made.
    reasons : dict of str to str
        Of those not determined, why.
    tree : str or None
        The tree of the sum as nested parentheses of positions, where it was found.
    """

    values: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    tree: str | None = None

    def attempt(self, name: str, find: Callable[[], str]) -> None:
        """Record what `find` returns, or that and why it is not determined."""
        try:
            self.values[name] = find()
        except (NotDetermined, Unexpressible) as error:
            self.values[name], self.reasons[name] = NOT_DETERMINED, str(error)
        except ProductFailed as error:
            self.values[name], self.reasons[name] = NOT_DETERMINED, f"the kernel failed: {error}"

    def undetermined(self, reason: str, *names: str) -> None:
        """Record that findings are not determined."""
        for name in names:
            self.values[name], self.reasons[name] = NOT_DETERMINED, reason
