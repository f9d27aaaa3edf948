"""Files stay small: 300 lines is the rule, 500 the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RULE = 300
END = 500
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Lists long sources; 1 if one is longer than `END`."""
    patterns = ("*.rs", "*.py", "*.pyi")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    sizes = {n: len((ROOT / n).read_bytes().splitlines()) for n in listed if (ROOT / n).exists()}
    for name, lines in sorted(sizes.items(), key=lambda item: -item[1]):
        if lines > RULE:
            print(f"{lines:5} {name}{'  TOO LONG' if lines > END else ''}")
    return 1 if any(lines > END for lines in sizes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
