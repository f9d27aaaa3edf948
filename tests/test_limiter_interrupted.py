"""Ctrl-C between any two lines of a wait loses no slot and no place in the line."""

from __future__ import annotations

import asyncio
import dis
import sys
from typing import Any

import pytest
from child import is_collected

from ferrogate import RateLimiter, rate_limited

# The instructions at whose end an interpreter handles signals.
_CHECKED = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD"}


def handler(code: Any, at: int) -> Any:
    """Where an exception of the instruction at ``at`` goes."""
    table = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    return next((entry.target for entry in table if entry.start <= at < entry.end), None)


def interrupted_at(number: int, files: tuple[str, ...], work: Any) -> bool:
    """Runs ``work`` with Ctrl-C in the ``number``-th gap where one can come; false if there are
    not so many."""
    seen = 0
    last: dict[Any, int] = {}

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(files):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            code, before = frame.f_code, last.get(frame)
            last[frame] = frame.f_lasti
            # It is raised here, in the next instruction: the handler must be the same.
            if (
                before is not None
                and dis.opname[code.co_code[before]] in _CHECKED
                and handler(code, before) == handler(code, frame.f_lasti)
            ):
                seen += 1
                if seen == number:
                    raise KeyboardInterrupt
        return trace

    tracing = sys.gettrace()
    # 3.12 looks at the first frame to see whether anybody wants to hear of instructions.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracing)
        last.clear()
    return seen >= number


OURS = ("ferrogate/limiter.py", "ferrogate/_waiting.py")


def test_ctrl_c_between_two_lines_loses_no_slot_of_a_thread() -> None:
    limiter = RateLimiter(burst=1)

    def numbers() -> Any:
        yield 1

    plain = rate_limited(limiter=limiter)(lambda: None)
    generator = rate_limited(limiter=limiter)(numbers)
    for work in (plain, lambda: list(generator())):
        number = 1
        while interrupted_at(number, OURS, work):
            assert is_collected()
            assert limiter.get_stats()["concurrent_requests"] == 0, number
            number += 1
        assert number > 1


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_ctrl_c_between_two_lines_loses_no_place_and_no_slot_of_a_coroutine() -> None:
    limiter = RateLimiter(burst=1)

    async def nothing() -> None:
        return None

    decorated = rate_limited(limiter=limiter)(nothing)

    held = False

    def release() -> None:
        nonlocal held
        held = False
        limiter.__exit__(None, None, None)

    async def main() -> None:
        nonlocal held
        held = limiter.__enter__() is limiter
        asyncio.get_running_loop().call_later(0.001, release)
        await decorated()

    number = 1
    while interrupted_at(number, OURS, lambda: asyncio.run(main())):
        if held:
            # The loop ended before its time.
            release()
        assert is_collected()
        stats = limiter.get_stats()
        assert (stats["waiting"], stats["concurrent_requests"]) == (0, 0), number
        number += 1
    assert number > 5
