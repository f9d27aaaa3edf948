"""The readers: what they read, and the one line that they say of a bad trace."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from ferrogate.cli._errors import CliError
from ferrogate.cli.traces import Row, read_trace, with_repeats

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE = f"{HEADER}\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def mooncake(**changes: object) -> str:
    row = {"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [0, 1]}
    return json.dumps({k: v for k, v in (row | changes).items() if v is not ...})


def test_azure_with_crlf_and_hundred_nanoseconds(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.csv", AZURE))
    assert trace.format == "azure"
    assert [(r.at, r.input_tokens, r.output_tokens, r.line) for r in trace.rows] == [
        (0.0, 374, 44, 2),
        (4.314579, 396, 109, 3),
    ]
    assert trace.rows[0].prompt != trace.rows[1].prompt


def test_mooncake_identity_is_the_whole_of_hash_ids(tmp_path: Path) -> None:
    lines = [
        mooncake(hash_ids=[1, 2]),
        mooncake(timestamp=3000, hash_ids=[1, 2], output_length=9),
        mooncake(timestamp=3001, hash_ids=[1, 2, 3]),
        mooncake(timestamp=3001, hash_ids=[12]),
    ]
    trace = read_trace(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert trace.format == "mooncake"
    assert [row.at for row in trace.rows] == [0.0, 3.0, 3.001, 3.001]
    prompts = [row.prompt for row in trace.rows]
    assert prompts[0] == prompts[1]
    assert len(set(prompts)) == 3


def test_the_real_traces(conversation: Path, mooncake: Path) -> None:
    azure = read_trace(conversation)
    assert len(azure.rows) == 19_366
    assert azure.seconds == pytest.approx(3501.7219, abs=1e-4)
    other = read_trace(mooncake)
    assert len(other.rows) == 12_031
    assert len({row.prompt for row in other.rows}) == 11_913


BROKEN_AZURE = [
    ("2023-11-16 18:15:51,1", "2 columns instead of 3"),
    ("2023-11-16 18:15:51,1,2,3", "4 columns instead of 3"),
    ("2023-11-16T18:15:51,1,2", "TIMESTAMP is not"),
    ("2023-11-16 18:15:51.12345678,1,2", "TIMESTAMP is not"),
    ("2023-02-30 18:15:51,1,2", "TIMESTAMP '2023-02-30 18:15:51': day"),
    ("2023-11-16 18:15:51,-1,2", "ContextTokens is not a whole number: '-1'"),
    ("2023-11-16 18:15:51,1,2.5", "GeneratedTokens is not a whole number: '2.5'"),
    ("2023-11-16 18:15:51,1,", "GeneratedTokens is not a whole number: ''"),
    ("2023-11-16 18:15:51,1,\u0662", "GeneratedTokens is not a whole number"),
    ("2023-11-16 18:15:40,1,2", "its time is before that of the line above"),
    ("\x00\x01", "a zero byte"),
]

BROKEN_MOONCAKE = [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ("[" * 100_000, "not JSON"),
    (mooncake(timestamp=...), "no field 'timestamp'"),
    (mooncake(hash_ids=...), "no field 'hash_ids'"),
    (mooncake(timestamp=-1), "timestamp is not a whole number"),
    (mooncake(input_length=1.5), "input_length is not a whole number"),
    (mooncake(output_length=True), "output_length is not a whole number"),
    (mooncake(hash_ids=[]), "hash_ids is not a list"),
    (mooncake(hash_ids="0 1"), "hash_ids is not a list"),
    (mooncake(hash_ids=[0, "1"]), "hash_ids is not a list"),
    (mooncake(timestamp=1), "its time is before"),
]


def refusal(path: Path) -> str:
    with pytest.raises(CliError) as refused:
        read_trace(path)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize(("line", "what"), BROKEN_AZURE)
def test_a_broken_azure_line_7001(tmp_path: Path, line: str, what: str) -> None:
    good = "2023-11-16 18:15:50.9951690,396,109"
    lines = [HEADER, *[good] * 6_999, line, good]
    message = refusal(write(tmp_path / "t.csv", "\r\n".join(lines)))
    assert "line 7,001: " in message
    assert what in message


@pytest.mark.parametrize(("line", "what"), BROKEN_MOONCAKE)
def test_a_broken_mooncake_line_7001(tmp_path: Path, line: str, what: str) -> None:
    lines = [*[mooncake(timestamp=2)] * 7_000, line, mooncake(timestamp=2)]
    message = refusal(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert "line 7,001: " in message
    assert what in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty file"),
        (b"\n", "empty file"),
        (HEADER, "no request after the header"),
        (f"{HEADER}\n\n2023-11-16 18:15:51,1,2\n", "line 2: an empty line"),
        ("time,tokens\n1,2\n", "line 1: neither the Azure header"),
        ("TIMESTAMP,GeneratedTokens,ContextTokens\n", "line 1: neither the Azure header"),
        (bytes(range(256)) * 100, "line 1: not text: a zero byte"),
        (gzip.compress(AZURE.encode()), "compressed; unpack it first"),
        (b"\x89PNG\r\n\x1a\n" * 100, "line 1: not UTF-8 text (byte 1 of the line)"),
        (b"\x7fELF\0\0\0", "line 1: not text: a zero byte"),
        (b"x" * (2 << 20), "line 1: longer than 1,048,576 bytes"),
        (b"\x1b[31mred\x07\n", "line 1: neither the Azure header"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, content: str | bytes, what: str) -> None:
    message = refusal(write(tmp_path / "t", content))
    assert what in message
    assert message.isprintable()


def test_no_file_a_directory_and_no_permission(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv").endswith("no such file")
    assert refusal(tmp_path).endswith("a directory, not a trace")
    if os.geteuid() != 0:
        locked = write(tmp_path / "locked.csv", AZURE)
        locked.chmod(0)
        assert refusal(locked).endswith("Permission denied")


def test_a_part_is_timed_from_its_own_start(tmp_path: Path) -> None:
    lines = [mooncake(timestamp=1000 * i, hash_ids=[i]) for i in range(10)]
    trace = read_trace(write(tmp_path / "t.jsonl", "\n".join(lines)))
    part = trace.part(start=2.5, seconds=4)
    assert [row.at for row in part.rows] == [0.5, 1.5, 2.5, 3.5]
    assert [row.line for row in trace.part(limit=2).rows] == [1, 2]
    with pytest.raises(CliError, match=r"no request in the part asked for; .* after 9\.0 s"):
        trace.part(start=9.5)


def test_repeats_are_marked_and_seeded(tmp_path: Path) -> None:
    lines = [mooncake(timestamp=i, hash_ids=[i], input_length=i) for i in range(2_000)]
    trace = read_trace(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert with_repeats(trace, 0.0, 1) is trace
    repeated = with_repeats(trace, 0.25, 1)
    assert repeated == with_repeats(trace, 0.25, 1)
    marked = [row for row in repeated.rows if row.synthetic_repeat]
    assert len(marked) == pytest.approx(500, rel=0.15)
    assert [row.at for row in repeated.rows] == [row.at for row in trace.rows]
    first: dict[str, Row] = {}
    for row in repeated.rows:
        original = first.setdefault(row.prompt, row)
        assert row.input_tokens == original.input_tokens
        assert row.synthetic_repeat == (row is not original)
