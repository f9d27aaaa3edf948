"""Everything that decides a replay, in one place, and how it is printed into the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.traces import Trace

__all__ = ["PRICES", "Settings"]

PRICES = {
    "gpt-4o": (2.50, 10.00),
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4.1": (2.00, 8.00),
    "gpt-4.1-mini": (0.40, 1.60),
}
"""USD per million input and output tokens: list prices of 2025, without discounts."""

# The automatic limit stands this far above the trace's mean rate: the work can
# be done in about the trace's time, and every peak still runs into the wall.
_AUTO_HEADROOM = 1.05


@dataclass(frozen=True, slots=True)
class Settings:
    """A replay's settings; times in trace seconds unless they say otherwise."""

    provider: ProviderConfig
    virtual: bool = False
    baseline: bool = True
    model: str = "gpt-4o-mini"
    price_input: float = 0.15
    price_output: float = 0.60
    retries: int = 2
    timeout: float = 120.0
    max_wait: float | None = None
    margin: float = 0.5
    """Real seconds by which the client's windows are longer than the provider's."""
    cache_size: int = 10_000
    cache_ttl: float = 3600.0
    repeat_rate: float = 0.0
    stream: bool = False
    automatic_limit: bool = False
    tenants: int = 1
    flood: int = 1
    """How many times the requests of another tenant the first one sends."""

    @property
    def speed(self) -> float:
        """How many trace seconds a second of the run takes."""
        return self.provider.speed

    def fitted_to(self, trace: Trace) -> Settings:
        """Fills in the automatic requests-per-minute limit."""
        if not self.automatic_limit:
            return self
        minutes = max(trace.seconds / 60.0, 1.0)
        limit = max(1, round(_AUTO_HEADROOM * len(trace.rows) / minutes))
        return replace(self, provider=replace(self.provider, requests_per_minute=limit))

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """USD."""
        return (input_tokens * self.price_input + output_tokens * self.price_output) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """For the machine-readable report."""
        return asdict(self)
