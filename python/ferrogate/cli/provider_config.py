"""The provider's settings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["ADMISSION", "PRODUCED", "ProviderConfig"]

ADMISSION = "admission"
PRODUCED = "produced"

_COUNTS = (
    "requests_per_minute",
    "requests_per_hour",
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "concurrency",
)


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """The provider's settings in trace time; 0 means "no such limit".

    ``output_counted`` says when the output tokens of a request count against
    ``output_tokens_per_minute``:

    * ``"admission"``: ``max_tokens`` (or the answer's length, where the request
      does not say) when it is admitted, corrected when it ends to what was
      produced. Anthropic documented this until 2025; a client that keeps it
      exactly is never refused.
    * ``"produced"``: each token when it is produced, whatever ``max_tokens``
      says, as Anthropic documents today. A request is refused while the window
      is full; those under way go on, and may take the window above its limit.

    ``tokens_per_minute`` is OpenAI's: input and ``max_tokens`` together on
    admission, and no correction, since OpenAI documents none.
    """

    requests_per_minute: int = 0
    requests_per_hour: int = 0
    tokens_per_minute: int = 0
    input_tokens_per_minute: int = 0
    output_tokens_per_minute: int = 0
    concurrency: int = 0
    output_counted: str = ADMISSION
    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_timeout: float = 0.0
    ttft_base: float = 0.2
    ttft_per_input_token: float = 0.00025
    seconds_per_output_token: float = 0.02
    seed: int = 0
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rate_429", "rate_500", "rate_timeout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be a share between 0 and 1")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.output_counted not in (ADMISSION, PRODUCED):
            raise ValueError(f'output_counted must be "{ADMISSION}" or "{PRODUCED}"')
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError("speed must be a positive number")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProviderConfig:
        """Reads `to_dict`'s object."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
