"""Native cache, rate limiter, metrics and health for Python agents in production."""

from ferrogate._core import __version__

__all__ = ["__version__"]
