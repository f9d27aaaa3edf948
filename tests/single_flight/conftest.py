"""Nothing is left over after any test of this room."""

from leftovers import leaves_nothing

__all__ = ["leaves_nothing"]
