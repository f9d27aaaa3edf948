"""`run.py MODULE TARGET [LIBFUZZER'S ARGUMENTS]`: one target in this interpreter."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader

# The folder of this file, with the models, is on the path: Python puts it there.
_, path, target, *arguments = sys.argv
loader = ExtensionFileLoader("ferrogate_fuzz", path)
spec = importlib.util.spec_from_file_location("ferrogate_fuzz", path, loader=loader)
assert spec is not None
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
sys.exit(module.run(target, arguments))
