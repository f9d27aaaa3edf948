"""Files stay small: 300 lines is the rule, at 500 somebody has to say why.

The reasons stand in `tools/reviewed-lengths.txt`, a line each: `path: reason`. An entry
that is no longer needed is a fault too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RULE = 300
END = 500
ROOT = Path(__file__).resolve().parent.parent
REVIEWED = ROOT / "tools" / "reviewed-lengths.txt"


def main() -> int:
    """Lists long sources; 1 if one is longer than `END` and nobody has said why."""
    patterns = ("*.rs", "*.py", "*.pyi")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    sizes = {n: len((ROOT / n).read_bytes().splitlines()) for n in listed if (ROOT / n).exists()}
    lines = REVIEWED.read_text(encoding="utf-8").splitlines() if REVIEWED.exists() else []
    reviewed = dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))
    faults = 0
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size > END and name not in reviewed:
            faults += 1
        if size > RULE:
            verdict = "TOO LONG" if size > END and name not in reviewed else reviewed.get(name, "")
            print(f"{size:5} {name}  {verdict}".rstrip())
    for name in sorted(n for n in reviewed if sizes.get(n, 0) <= END):
        faults += 1
        print(f"{REVIEWED.name}: {name} is no longer long")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
