"""The native module. Hand-written, kept true by ``mypy.stubtest``."""

__version__: str
