"""The packages of the optional extras: which are missing, and which are of a wrong version."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from dataclasses import dataclass

from ferrogate.cli._errors import CliError

__all__ = ["Requirement", "of_extra", "require_demo_extra"]

# As a wheel's metadata spells pyproject's line: `openai<4,>=3 ; extra == 'demo'`.
_LINE = re.compile(r"([\w.-]+)\s*\(?([<>=!~\d.,\s]*)\)?\s*;.*extra\s*==\s*[\"'](\w+)[\"']")
_BOUND = re.compile(r"(>=|<)\s*(\d+(?:\.\d+)*)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that an extra needs, and the versions that do."""

    package: str
    versions: str

    def __str__(self) -> str:
        return f"{self.package}{self.versions}"

    @property
    def installed(self) -> str | None:
        """The version that is installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def admits(self, version: str) -> bool:
        """Whether that version is one of those that do."""
        is_, bounds = _numbers(version), _BOUND.findall(self.versions)
        return all((is_ >= _numbers(b)) == (sign == ">=") for sign, b in bounds)

    def fault(self) -> str | None:
        """What is wrong with the installed package, if anything is."""
        try:
            importlib.import_module(self.package)
        except ImportError:
            return f"{self.package} is missing"
        version = self.installed
        if version is not None and not self.admits(version):
            return f"{self.package} is {version}"
        return None


def of_extra(extra: str) -> list[Requirement]:
    """What the installed ferrogate says of its extra."""
    try:
        lines = importlib.metadata.requires("ferrogate") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [match for line in lines if (match := _LINE.match(line)) and match[3] == extra]
    return [Requirement(match[1], match[2].replace(" ", "")) for match in found]


def require_demo_extra(command: str) -> None:
    """Raises `CliError` with the way to install when a package of the extra does not do."""
    faults = [(needed, fault) for needed in of_extra("demo") if (fault := needed.fault())]
    if faults:
        # The packages by name: `ferrogate[demo]` would ask an index for ferrogate,
        # which may have been installed from a wheel that is on none.
        packages = " ".join(f"'{needed}'" for needed, _ in faults)
        said = ", ".join(fault for _, fault in faults)
        raise CliError(f"`ferrogate {command}`: {said}; pip install {packages}")


def _numbers(version: str) -> tuple[int, ...]:
    # `4.0b1` counts as 4.0, which is what a bound "below 4" means to say.
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()  # 4 and 4.0 are the same
    return tuple(numbers)
