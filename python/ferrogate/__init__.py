"""Native cache, rate limiter, metrics and health for Python agents in production."""

from ferrogate._core import __version__
from ferrogate.exceptions import FerrogateError, InternalError, RateLimitExceeded

__all__ = [
    "FerrogateError",
    "InternalError",
    "RateLimitExceeded",
    "__version__",
]
