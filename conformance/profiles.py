"""How long a run looks: smoke, standard, exhaustive."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """A profile.

    Attributes
    ----------
    examples : int
        Cases a property draws, spread over its variants.
    least : int
        Cases each variant gets at least.
    timeout : float
        Seconds after which a call counts as hung.
    exhaustive : bool
        Whether the tests that enumerate 2**32 inputs or need more than 2**31 elements run.
    """

    name: str
    examples: int
    least: int
    timeout: float
    exhaustive: bool = False


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("glance", examples=8, least=1, timeout=5.0),
        Profile("smoke", examples=24, least=2, timeout=5.0),
        Profile("standard", examples=200, least=6, timeout=10.0),
        Profile("exhaustive", examples=1000, least=20, timeout=600.0, exhaustive=True),
    )
}
