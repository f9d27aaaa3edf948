"""The provider's books: what it counted, in all, by tenant and by second."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ferrogate.cli.meter import MOST_SECONDS

__all__ = ["OTHERS", "Counts", "TenantCounts"]

#: Who comes when there are this many already is one of "(others)".
_MOST_TENANTS = 1_000
OTHERS = "(others)"

ARRIVED, ANSWERED, REFUSED = range(3)


@dataclass(slots=True)
class TenantCounts:
    """What one tenant asked for and got."""

    received: int = 0
    admitted: int = 0
    served: int = 0
    rate_limited: int = 0
    too_large: int = 0
    admitted_input_tokens: int = 0
    admitted_output_tokens: int = 0


@dataclass(slots=True)
class Counts:
    """Counts since the start; `rate_limited` are the 429s of the limits, injected ones apart."""

    received: int = 0
    served: int = 0
    abandoned: int = 0
    rate_limited: int = 0
    rate_limited_by: dict[str, int] = field(default_factory=dict)
    too_large: int = 0
    injected_429: int = 0
    injected_500: int = 0
    injected_timeout: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    tenants: dict[str, TenantCounts] = field(default_factory=dict)
    bins: dict[int, list[int]] = field(default_factory=dict)
    """By second of trace time since the first arrival: arrived, answered, refused."""

    def tenant(self, name: str) -> TenantCounts:
        """The books of one tenant, opened if there are none."""
        if name not in self.tenants and len(self.tenants) >= _MOST_TENANTS:
            name = OTHERS
        return self.tenants.setdefault(name, TenantCounts())

    def tick(self, second: float, column: int) -> None:
        """One more in that second's column."""
        self.bins.setdefault(min(int(second), MOST_SECONDS), [0, 0, 0])[column] += 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `bins` becomes ``timeline``, rows in order of time."""
        told = asdict(self)
        del told["bins"]
        told["timeline"] = [[second, *bins] for second, bins in sorted(self.bins.items())]
        return told
