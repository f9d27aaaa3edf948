"""How full a provider's limits are kept without a single 429: whole production traces.

Replays the traces (FERROGATE_TRACES, or shared/traces beside the project) with `ferrogate replay`
against limits that make them wait, each time with another one binding, and prints by the
provider's own count: 429s, the share of the binding limit that was in use while requests waited,
and with one tenant flooding, Jain's index over received / min(demand, fair share).
Exits with 1 if a setting misses its target.

`--http` replays five minutes of each over real HTTP in real time instead, several at once;
`--only TEXT` only the settings whose line has TEXT.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FERROGATE = Path(sys.executable).with_name("ferrogate")

FILES = {
    "Azure conversation": "AzureLLMInferenceTrace_conv.csv",
    "Azure code": "AzureLLMInferenceTrace_code.csv",
    "Mooncake": "mooncake_conversation_trace.jsonl",
}
#: Requests, input tokens and output tokens a minute; the first that is named binds.
SETTINGS = {
    "Azure conversation": [
        ("requests", 300, 600_000, 150_000),
        ("input tokens", 500, 350_000, 150_000),
        ("output tokens", 500, 600_000, 60_000),
    ],
    "Azure code": [
        ("requests", 130, 450_000, 6_000),
        ("input tokens", 400, 250_000, 6_000),
        ("output tokens", 400, 900_000, 3_600),
    ],
    "Mooncake": [
        ("requests", 180, 6_000_000, 150_000),
        ("input tokens", 400, 2_000_000, 150_000),
        ("output tokens", 400, 6_000_000, 60_000),
    ],
}
#: Where five minutes are busy: seconds into the trace.
BUSY = {"Azure conversation": 600, "Azure code": 1_500, "Mooncake": 600}
FLOOD = ("--tenants", "5", "--flood", "1000")

LEAST_USED = 95.0
LEAST_JAIN = 0.95


@dataclass(frozen=True)
class Setting:
    """One run: a trace under limits of which one binds."""

    trace: str
    binding: str
    limits: tuple[int, int, int]
    flooded: bool = False

    def __str__(self) -> str:
        flood = ", one of 5 tenants sends 1000 : 1" if self.flooded else ""
        return f"{self.trace}, {self.binding} bind{flood}"

    def flags(self, http: bool) -> list[str]:
        """What `ferrogate replay` is given."""
        names = ("--rpm", "--input-tokens-per-minute", "--output-tokens-per-minute")
        flags = [flag for pair in zip(names, map(str, self.limits), strict=True) for flag in pair]
        flags += ["--no-baseline", "--json", *(FLOOD if self.flooded else ())]
        if http:
            return [*flags, "--start", str(BUSY[self.trace]), "--seconds", "300"]
        return [*flags, "--virtual"]


def settings() -> Iterator[Setting]:
    """All of them."""
    for trace, rows in SETTINGS.items():
        for binding, *limits in rows:
            yield Setting(trace, binding, (limits[0], limits[1], limits[2]))
        binding, *limits = rows[1]
        yield Setting(trace, binding, (limits[0], limits[1], limits[2]), flooded=True)


def run(setting: Setting, folder: Path, http: bool) -> tuple[str, bool]:
    """The line of one setting, and whether it met its targets."""
    command = [FERROGATE, "replay", folder / FILES[setting.trace], *setting.flags(http)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"| {setting} | failed: {done.stderr.strip()[-300:]} |", False
    replayed = json.loads(done.stdout)["runs"]["with"]
    flow = replayed["flow"]
    fairness = (flow["fairness"] or {}).get("jain")
    used, refused = flow["binding_used_percent"], replayed["never_granted"]
    met = (
        flow["rate_limited"] == 0
        and flow["binding"] == f"{setting.binding} per minute"
        and used is not None
        and used >= LEAST_USED
        and all(request["refused_after_seconds"] == 0 for request in refused)
        and replayed["answered"] + len(refused) == replayed["requests"]
        and (not setting.flooded or (fairness is not None and fairness >= LEAST_JAIN))
    )
    jain = "" if fairness is None else f"{fairness:.4f}"
    cells = (
        str(setting),
        f"{replayed['requests']:,}",
        str(flow["rate_limited"]),
        f"{flow['binding']}: {used} %",
        f"{flow['backlog_seconds']:,.0f}",
        str(len(refused)),
        jain,
        "yes" if met else "NO",
    )
    return f"| {' | '.join(cells)} |", met


def main() -> int:
    """Runs them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--http", action="store_true", help="five minutes each over real HTTP")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings with TEXT in them")
    parser.add_argument("--jobs", type=int, default=2, help="replays at once (default: 2)")
    options = parser.parse_args()
    folder = Path(os.environ.get("FERROGATE_TRACES") or ROOT.parent / "shared" / "traces")
    if not folder.is_dir():
        sys.exit(f"no traces at {folder} (set FERROGATE_TRACES)")
    chosen = [setting for setting in settings() if options.only in str(setting)]
    if not chosen:
        sys.exit(f"--only: no setting has {options.only!r}")
    print("| | requests | 429s | used while requests waited | s of waiting |", end="")
    print(" refused at once | Jain | met |\n|---|---|---|---|---|---|---|---|", flush=True)
    missed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, met in pool.map(lambda one: run(one, folder, options.http), chosen):
            print(line, flush=True)
            missed += not met
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
