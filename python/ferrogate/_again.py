"""Components made once more, on another clock: what a dry run runs on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from ferrogate.testing import ManualClock

__all__ = ["Again", "remembers"]

_New = TypeVar("_New", bound=Callable[..., Any])

#: What looks at results, errors and keys, of which a recording has none, whom it is not to alarm,
#: and what others share.
_LEFT_OUT = {
    "classify": None,
    "key": None,
    "on": None,
    "on_exceeded": None,
    "on_threshold": None,
    "store": "memory",
}


def remembers(new: _New) -> _New:
    """A ``__new__`` whose objects know what they were made with."""

    @functools.wraps(new)
    def remembering(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        made = new(cls, *args, **kwargs)
        made._made_with = (args, kwargs)
        return made

    return cast("_New", remembering)


class Again:
    """Makes components as they were made, on one clock; what shared a part shares it again."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._made: dict[int, tuple[object, Any]] = {}

    def __call__(self, part: Any, **changes: Any) -> Any:
        """``part`` once more; what is no component is itself."""
        made_with = getattr(part, "_made_with", None)
        if made_with is None:
            return part
        if id(part) not in self._made:
            args, given = made_with
            parameters = inspect.signature(type(part).__new__).parameters
            kwargs = {name: self(value) for name, value in given.items()}
            kwargs |= {name: _LEFT_OUT[name] for name in _LEFT_OUT if name in kwargs}
            if "clock" in parameters:
                kwargs["clock"] = self._clock
            kwargs |= changes
            made = type(part)(*map(self, args), **kwargs)
            # With the part, so that its number stays its own.
            self._made[id(part)] = (part, made)
        return self._made[id(part)][1]
