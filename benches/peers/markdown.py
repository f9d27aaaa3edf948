"""The table of README.md, from the rows of one run: paste it as it is printed."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["table"]

TIMES = "\N{MULTIPLICATION SIGN}"
HEAD = f"""\
| work | ferrogate | beside it (2 {TIMES}: takes twice as long as ferrogate) |
|---|---|---|"""
CODE = re.compile(
    r"@cached|@retry|Cache\.[gs]et\b|\b(?:try_)?acquire\b|functools\.lru_cache|c\[key\] =|"
    r"json\.dumps\(sort_keys\)"
)


def table(rows: list[dict[str, Any]]) -> str:
    """Every contender's nanoseconds, and beside them its time divided by ferrogate's."""
    return "\n".join([HEAD, *map(_line, rows)])


def _line(row: dict[str, Any]) -> str:
    ours = next(one for one in row["contenders"] if one["package"] == "ferrogate")
    beside = [_cell(one, ours["nanoseconds"]) for one in row["contenders"] if one is not ours]
    line = f"| {row['row']} | {_time(ours['nanoseconds'])} | {'; '.join(beside)} |"
    return CODE.sub(r"`\g<0>`", line)


def _cell(one: dict[str, Any], base: float | None) -> str:
    note = f" ({one['note']})" if one["note"] else ""
    ratio = f", {_ratio(one['nanoseconds'] / base)} {TIMES}" if base and one["nanoseconds"] else ""
    return f"{one['name']}{note} {_time(one['nanoseconds'])}{ratio}"


def _time(nanoseconds: float | None) -> str:
    return "failed" if nanoseconds is None else f"{nanoseconds:,.0f} ns"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:,.0f}"
