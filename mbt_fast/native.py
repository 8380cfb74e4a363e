"""The compiled part, ``mbt_fast._C``: loaded on first use, and its absence explained."""

import importlib
import importlib.util
from types import ModuleType

MODULE = "mbt_fast._C"


def why_missing() -> list[str]:
    """Reasons for which the compiled part cannot be used; empty if it can."""
    if importlib.util.find_spec(MODULE) is None:
        return [
            f"{MODULE} is not built: the package was installed without a C++17 compiler or with "
            "MBT_FAST_NATIVE=0; install g++ or clang++ and install mbt-fast again"
        ]
    try:
        _module()
    except ImportError as error:
        return [f"{MODULE} is installed but fails to load: {error}"]
    return []


def cpu_features() -> dict[str, bool]:
    """Instruction sets that this process may use, by name; empty without the compiled part."""
    return {} if why_missing() else _module().cpu_features()


def compiler() -> str:
    """The compiler that built the compiled part.

    Raises:
        ImportError: There is none; ``why_missing`` says why.
    """
    return _module().compiler


def _module() -> ModuleType:
    return importlib.import_module(MODULE)
