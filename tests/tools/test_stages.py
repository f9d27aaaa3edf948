"""The runner of stages: a failure anywhere fails the whole, and every run is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"

SCRIPT = """
import re, sys
from pathlib import Path
sys.path.insert(0, {tools!r})
from stages import Stages
stages = Stages("trial")
{body}
sys.exit(stages.close())
"""

JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="b"/>
<testcase classname="a" name="c"><skipped type="pytest.skip" message="no server"/></testcase>
<testcase classname="a" name="d"><skipped type="pytest.xfail" message="known"/></testcase>
<testcase classname="a" name="e"><skipped type="pytest.skip" message="needs CPython"/></testcase>
</testsuite></testsuites>"""


def run(body: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs stages in an interpreter of their own."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(tools=str(TOOLS), body=body)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **env},
        timeout=60,
        check=False,
    )


def test_commands_count_as_one_and_cargo_as_many() -> None:
    said = run(
        'stages.run("one", ["true"])\n'
        'stages.run("cargo", ["echo", "test result: ok. 12 passed; 0 failed; 3 ignored; 0"])\n'
    )
    assert said.returncode == 0
    assert " 13 passed, 3 skipped in " in said.stdout.splitlines()[-1]


def test_one_beside_another_says_what_it_has_to_say_afterwards() -> None:
    said = run(
        # Neither ends before the other has begun.
        'one, other = "mkfifo a b 2>&-; echo x > a; cat b", "mkfifo a b 2>&-; cat a; echo x > b"\n'
        "import os, tempfile\n"
        "os.chdir(tempfile.mkdtemp())\n"
        'here = {"cwd": Path.cwd()}\n'
        'with stages.beside("other", ["sh", "-c", other + "; echo said; false"], **here):\n'
        '    stages.run("one", ["sh", "-c", one], **here)\n'
        '    print("done", flush=True)\n'
    )
    assert said.returncode == 1
    assert said.stdout.index("done") < said.stdout.index("── trial: other") < len(said.stdout)
    assert said.stdout.count("said") == 1
    assert " 1 failed, 1 passed in " in said.stdout.splitlines()[-1]


def test_a_failure_is_counted_and_the_rest_still_runs() -> None:
    said = run(
        'stages.run("bad", ["false"])\n'
        'stages.run("absent", ["/no/such/program"])\n'
        'stages.run("good", ["true"])\n'
    )
    assert said.returncode == 1
    assert " 2 failed, 1 passed in " in said.stdout.splitlines()[-1]
    assert "exit code 127" in said.stdout


def test_a_bad_exit_after_good_tests_is_a_failure() -> None:
    said = run(
        'stages.run("c", ["sh", "-c", "echo test result: ok. 2 passed\\\\; 0 failed\\\\; 0 ignored;'
        ' exit 3"])\n'
    )
    assert said.returncode == 1
    assert " 1 failed, 2 passed in " in said.stdout.splitlines()[-1]


def test_a_skip_without_an_excuse_fails_where_nothing_may_skip(tmp_path: Path) -> None:
    written = tmp_path / "written.xml"
    written.write_text(JUNIT, encoding="utf-8")
    stage = (
        f'stages.run("p", ["cp", {str(written)!r}, {str(tmp_path / "j.xml")!r}],'
        f" junit=Path({str(tmp_path / 'j.xml')!r}), excused={{}})\n"
    )
    lenient = run(stage.format("None"))
    assert lenient.returncode == 0
    assert " 1 passed, 3 skipped in " in lenient.stdout.splitlines()[-1]
    strict = run(stage.format('re.compile("^needs CPython")'))
    assert strict.returncode == 1
    assert " 1 failed, 1 passed, 2 skipped in " in strict.stdout.splitlines()[-1]
    assert "nothing may skip here: a.c: no server" in strict.stdout


def test_several_runs_end_in_one_line(tmp_path: Path) -> None:
    results = tmp_path / "results"
    run('stages.run("a", ["true"])\n', FERROGATE_RESULTS=str(results))
    run('stages.run("b", ["false"])\n', FERROGATE_RESULTS=str(results))
    assert [json.loads(line)["failed"] for line in results.read_text().splitlines()] == [0, 1]
    command = [sys.executable, TOOLS / "stages.py", results]
    total = subprocess.run([*command, "1"], capture_output=True, text=True, check=True).stdout
    assert " 1 failed, 1 passed in " in total
    (tmp_path / "none").touch()
    command = [sys.executable, TOOLS / "stages.py", tmp_path / "none"]
    total = subprocess.run([*command, "2"], capture_output=True, text=True, check=True).stdout
    assert " 1 failed in " in total
