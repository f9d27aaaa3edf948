"""What a guard's attempts came to, written down to be replayed against other thresholds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Literal, NamedTuple, cast

from ferrogate import _core
from ferrogate._arguments import whole

__all__ = ["AttemptRecord", "Recording"]

_FORMAT = {"format": "ferrogate recording", "version": 1}


class AttemptRecord(NamedTuple):
    """One attempt of a guarded call, or one that was refused before it began."""

    call: int
    """The call that it belongs to, from 1."""
    attempt: int
    """Which attempt of that call it was, from 1."""
    at: float
    """When it began or was refused, in seconds of the guard's clock."""
    waited: float
    """Seconds that it had waited by then for permits and slots."""
    took: float
    """Seconds that it took."""
    outcome: Literal["success", "failure", "throttled", "neutral", "refused"]
    """How it ended; ``"refused"``: a part of the guard did not let it through."""
    input_tokens: int = 0
    """As settled, or else as reserved; 0 without an ``LLMLimiter``."""
    output_tokens: int = 0
    cost_usd: float = 0.0


class Recording(_core.Recording):
    """Keeps what each attempt of a guard came to, for :meth:`Guard.dry_run`.

    ::

        recording = Recording()
        guard = Guard("openai", breaker=CircuitBreaker("openai"), recording=recording)
        ...
        print(guard.dry_run(recording, breaker=CircuitBreaker("stricter", stricter)))

    A record takes 72 bytes and no prompt, argument or result is in it. One recording may serve
    several guards whose calls are one story. Iterating over it gives :class:`AttemptRecord` in
    the order in which the attempts ended.

    Args:
        max_records: the newest so many are kept; ``dropped`` counts the others.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    def __new__(cls, max_records: int = 100_000) -> Recording:
        return super().__new__(cls, whole("max_records", max_records, least=1))

    def __iter__(self) -> Iterator[AttemptRecord]:
        return iter([AttemptRecord._make(cast("tuple[int]", row)) for row in self._rows()])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, a line of JSON for each record; the file is there whole or not.

        Raises:
            OSError: the file cannot be written.
        """
        beside = f"{os.fspath(path)}.{os.getpid()}.part"
        try:
            with open(beside, "w", encoding="utf-8") as file:
                json.dump(_FORMAT, file)
                for record in self:
                    file.write("\n" + json.dumps(record))
                file.write("\n")
            os.replace(beside, path)
        except BaseException:
            if os.path.exists(beside):
                os.unlink(beside)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Reads what :meth:`save` has written.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no recording, or a line of it is damaged; the message names that.
        """
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
        head = _parsed(lines[0]) if lines else None
        if head != _FORMAT:
            raise ValueError(f"{os.fspath(path)}: not a recording that Recording.save has written")
        recording = cls(max(1, len(lines) - 1))
        for number, line in enumerate(lines[1:], 2):
            fields = _parsed(line)
            try:
                # A line that was cut off is nothing.
                recording._push(AttemptRecord(*(fields if isinstance(fields, list) else ())))
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{os.fspath(path)}: line {number} is no record: {error}"
                ) from None
        return recording

    def __repr__(self) -> str:
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        return f"<Recording of {len(self)} attempts{dropped}>"


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None
