"""xgrammar's library without xgrammar's package, which imports torch and transformers: seconds and hundreds
of megabytes that the process which tries grammars out can do without."""

from __future__ import annotations

import importlib.util
import sys
import types
from functools import cache
from importlib import import_module
from typing import Any


@cache
def bindings() -> Any:
    """The classes ``TokenizerInfo``, ``GrammarCompiler``, ``Grammar`` and ``GrammarMatcher``."""
    spec = importlib.util.find_spec("xgrammar")
    assert spec is not None
    if "xgrammar" not in sys.modules:
        package = types.ModuleType("xgrammar")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["xgrammar"] = package
    import_module("xgrammar.load_binding")
    import_module("xgrammar.exception")
    return import_module("xgrammar.base")._core
