"""Production traces: one row per LLM request, read and checked to the last line.

Two public formats are read, told apart by the first line:

* Azure LLM inference traces (Azure Public Dataset, 2023), CSV with the header
  ``TIMESTAMP,ContextTokens,GeneratedTokens``, stamps of up to 100 ns. They say
  nothing about what was asked, so every row is a prompt of its own.
* Mooncake traces (FAST'25), one JSON object a line with ``timestamp`` (ms),
  ``input_length``, ``output_length`` and ``hash_ids``. Two rows are the same
  prompt exactly when their ``hash_ids`` are equal as a whole.

The whole file is checked before anything runs: a trace with one broken line is
refused by that line's number, whatever part of it was asked for.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from ferrogate.cli._errors import CliError

__all__ = ["Row", "Trace", "read_trace", "with_repeats", "with_tenants"]

_AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
_AZURE_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{1,7}))?", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,9}")
_MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
# A Mooncake line of 126,195 tokens has 247 block ids; nothing real comes near this.
_LONGEST_LINE = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh", b"\xfd7zXZ\0")
# A repeat repeats one of this many requests before it: people retry what is recent.
_REPEAT_SPAN = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One request: when, how long, and who it is."""

    at: float
    """Seconds after the start of the replayed part."""
    input_tokens: int
    output_tokens: int
    prompt: str
    """Equal for two rows exactly when the trace says that they ask the same."""
    line: int
    """Where it stands in the file; 0 for a generated row."""
    synthetic_repeat: bool = False
    tenant: str = ""
    """For whose account it is sent; no trace says that."""

    @property
    def max_tokens(self) -> int:
        """What its answer may have at most: the APIs take no less than 1."""
        return max(1, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Trace:
    """A named sequence of rows in order of time."""

    name: str
    format: str
    rows: tuple[Row, ...]
    #: Where it comes from, for the report.
    about: str = ""

    @property
    def seconds(self) -> float:
        """From the start of the replayed part to its last arrival."""
        return self.rows[-1].at if self.rows else 0.0

    def part(
        self, *, start: float = 0.0, seconds: float | None = None, limit: int | None = None
    ) -> Trace:
        """The rows of ``[start, start + seconds)``, at most ``limit``, timed from ``start``."""
        end = float("inf") if seconds is None else start + seconds
        rows = [replace(row, at=row.at - start) for row in self.rows if start <= row.at < end]
        if limit is not None:
            rows = rows[:limit]
        if not rows:
            raise CliError(
                f"{self.name}: no request in the part asked for; the trace ends after "
                f"{self.seconds:.1f} s"
            )
        return replace(self, rows=tuple(rows))


def read_trace(path: str | Path) -> Trace:
    """Reads and checks a whole trace.

    Raises:
        CliError: what is wrong with it, and in which line.
    """
    path = Path(path)
    lines = _lines(path)
    try:
        number, first = next(lines)
    except StopIteration:
        raise CliError(f"{path}: empty file") from None
    if first == _AZURE_HEADER:
        kind, parse = "azure", _azure_parser(path)
    elif first.startswith("{"):
        kind, parse = "mooncake", _mooncake_parser(path)
    else:
        raise _broken(
            path,
            number,
            f"neither the Azure header {_AZURE_HEADER!r} nor a JSON object: {_shown(first)}",
        )
    rows = [] if kind == "azure" else [parse(number, first)]
    for number, line in lines:
        row = parse(number, line)
        if rows and row.at < rows[-1].at:
            raise _broken(path, number, "its time is before that of the line above")
        rows.append(row)
    if not rows:
        raise CliError(f"{path}: no request after the header")
    base = rows[0].at
    return Trace(
        name=path.name,
        format=kind,
        rows=tuple(replace(row, at=round(row.at - base, 7)) for row in rows),
    )


def with_repeats(trace: Trace, rate: float, seed: int) -> Trace:
    """Turns a share ``rate`` of the rows into repeats of one of the 1,000 rows before.

    No trace says this; the repeated rows carry ``synthetic_repeat``.
    """
    if rate <= 0:
        return trace
    rng = random.Random(f"repeats:{seed}")
    rows: list[Row] = []
    for row in trace.rows:
        if rows and rng.random() < rate:
            source = rows[rng.randrange(max(0, len(rows) - _REPEAT_SPAN), len(rows))]
            rows.append(replace(source, at=row.at, line=row.line, synthetic_repeat=True))
        else:
            rows.append(row)
    return replace(trace, rows=tuple(rows))


def with_tenants(trace: Trace, tenants: int, flood: int, seed: int) -> Trace:
    """Deals the rows out to so many tenants, ``flood`` times as many to the first as to another.

    Each of the others gets at least one, at seeded places of the trace.
    """
    if tenants < 2:
        return trace
    each = max(1, round(len(trace.rows) / (flood + tenants - 1)))
    if each * (tenants - 1) >= len(trace.rows):
        raise CliError(f"--tenants: {tenants:,} are too many for {len(trace.rows):,} requests")
    places = random.Random(f"tenants:{seed}").sample(range(len(trace.rows)), each * (tenants - 1))
    whose = {place: f"tenant-{1 + index % (tenants - 1)}" for index, place in enumerate(places)}
    first = "flood" if flood > 1 else "tenant-0"
    rows = (replace(row, tenant=whose.get(place, first)) for place, row in enumerate(trace.rows))
    return replace(trace, rows=tuple(rows))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The file's lines with their numbers, without ends; an empty last line is no line."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(_LONGEST_LINE + 1):
                number += 1
                if number == 1 and raw.startswith(_COMPRESSED):
                    raise CliError(f"{path}: compressed; unpack it first")
                if len(raw) > _LONGEST_LINE:
                    raise _broken(path, number, f"longer than {_LONGEST_LINE:,} bytes")
                try:
                    line = raw.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _broken(
                        path, number, f"not UTF-8 text (byte {error.start + 1} of the line)"
                    ) from None
                if "\0" in line:
                    raise _broken(path, number, "not text: a zero byte")
                if not line.strip():
                    if file.read(1):
                        raise _broken(path, number, "an empty line")
                    return
                yield number, line
    except FileNotFoundError:
        raise CliError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CliError(f"{path}: a directory, not a trace") from None
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}") from None


def _azure_parser(path: Path) -> Callable[[int, str], Row]:
    def parse(number: int, line: str) -> Row:
        fields = line.split(",")
        if len(fields) != 3:
            raise _broken(path, number, f"{len(fields)} columns instead of 3: {_shown(line)}")
        stamp = _AZURE_STAMP.fullmatch(fields[0])
        if stamp is None:
            raise _broken(
                path,
                number,
                f"TIMESTAMP is not 'YYYY-MM-DD hh:mm:ss[.fffffff]': {_shown(fields[0])}",
            )
        try:
            whole = datetime.fromisoformat(stamp[1] + "+00:00").timestamp()
        except ValueError as error:
            raise _broken(path, number, f"TIMESTAMP {_shown(fields[0])}: {error}") from None
        for name, text in (("ContextTokens", fields[1]), ("GeneratedTokens", fields[2])):
            if _WHOLE.fullmatch(text) is None:
                raise _broken(path, number, f"{name} is not a whole number: {_shown(text)}")
        fraction = int((stamp[2] or "0").ljust(7, "0")) / 10_000_000
        return Row(whole + fraction, int(fields[1]), int(fields[2]), f"request {number}", number)

    return parse


def _mooncake_parser(path: Path) -> Callable[[int, str], Row]:
    def parse(number: int, line: str) -> Row:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise _broken(path, number, f"not JSON ({reason}): {_shown(line)}") from None
        if not isinstance(value, dict):
            raise _broken(path, number, f"not a JSON object: {_shown(line)}")
        for name in _MOONCAKE_FIELDS:
            if name not in value:
                raise _broken(path, number, f"no field {name!r}")
        for name in _MOONCAKE_FIELDS[:3]:
            if not _is_count(value[name]):
                raise _broken(
                    path, number, f"{name} is not a whole number ≥ 0: {_shown(repr(value[name]))}"
                )
        blocks = value["hash_ids"]
        if not isinstance(blocks, list) or not blocks or not all(map(_is_count, blocks)):
            raise _broken(path, number, "hash_ids is not a list of whole numbers ≥ 0")
        return Row(
            value["timestamp"] / 1000,
            value["input_length"],
            value["output_length"],
            "blocks " + " ".join(map(str, blocks)),
            number,
        )

    return parse


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 10**12


def _broken(path: Path, number: int, what: str) -> CliError:
    return CliError(f"{path}: line {number:,}: {what}")


def _shown(text: str) -> str:
    """A piece of foreign text that is safe on one line of a terminal."""
    shown = ascii(text[:60])
    return shown + "…" if len(text) > 60 else shown
