"""The compiled extensions: loaded on first use, and their absence explained.

``mbt_fast._C`` has the CPU kernels, ``mbt_fast._cuda`` those for NVIDIA Hopper.

``MBT_FAST_CPU`` names the instruction set of the CPU kernels, instead of the best that the machine
has: ``avx512_bf16``, ``avx512`` or ``avx2``; ``amx``, whose kernels have never run on a CPU that
has it, and are taken by name only; or ``amx_emulated``, slow and only for tests, which runs the
kernels of ``amx`` on tiles emulated in AVX-512.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

MODULE = "mbt_fast._C"
PACKAGE = Path(__file__).parents[1]
CUDA_MODULE = "mbt_fast._cuda"  # apart, so that it cannot keep the CPU kernels from loading

# Kernels that no machine of the kind they are for has run, and what was done instead.
NEVER_RUN = {
    "amx": "never run on a CPU with AMX: tested on emulated tiles, and its instructions by traps"
}
_INSTALL = {
    MODULE: "the package was installed without a C++17 compiler or with MBT_FAST_NATIVE=0; install "
    "g++ or clang++ (11, 12 or newer) and install mbt-fast again",
    CUDA_MODULE: "the package was installed without nvcc, where it fails, or with "
    "MBT_FAST_CUDA=0; install mbt-fast again with MBT_FAST_CUDA=1 to see why",
}
_LOADED: dict[str, ModuleType] = {}
_USABLE: list[str] = []


def module() -> ModuleType:
    """The extension with the CPU kernels.

    Raises:
        ImportError: There is none; ``why_no_cpu_kernels`` says why.
    """
    return _LOADED.get(MODULE) or _load(MODULE)


def cuda_module() -> ModuleType:
    """The extension with the CUDA kernels; it loads without a GPU, and without its driver.

    Raises:
        ImportError: There is none; ``why_no_cuda_kernels`` says why.
    """
    return _LOADED.get(CUDA_MODULE) or _load(CUDA_MODULE)


def why_missing(name: str = MODULE) -> list[str]:
    """Reasons for which an extension cannot be used; empty if it can."""
    if importlib.util.find_spec(name) is None:
        return [f"{name} is not built: {_why_not_built(name)}"]
    try:
        _load(name)
    except ImportError as error:
        return [f"{name} is installed but fails to load: {error}"]
    return []


def _why_not_built(name: str) -> str:
    """The reason that the build left beside the package, or what it may have been."""
    note = PACKAGE / f"{name.rpartition('.')[2]}.not-built"
    if not note.exists():
        return _INSTALL[name]
    return f"{note.read_text()} (when mbt-fast was built; install it again to try again)"


def why_no_cuda_kernels() -> list[str]:
    """Reasons of the installation for which the CUDA kernels cannot be used; empty if they can."""
    return why_missing(CUDA_MODULE)


def why_slow_cuda_kernels() -> str | None:
    """What the compiler did to the CUDA kernels that costs speed, if it did.

    Raises:
        ImportError: There are none; ``why_no_cuda_kernels`` says why.
    """
    built = cuda_module()
    numbers = sorted({warning.partition(":")[0] for warning in built.ptxas_warnings})
    spilled = [kernel for kernel, (_, _, size) in built.ptxas.items() if size]
    if not numbers and not spilled:
        return None
    did = [f"warned {', '.join(numbers)}"] if numbers else []
    did += [f"spilled registers of {', '.join(spilled)}"] if spilled else []
    return f"its compiler, {built.compiler}, {' and '.join(did)}: another may make faster kernels"


def why_no_cpu_kernels() -> list[str]:
    """Reasons for which the CPU kernels cannot be used; empty if they can."""
    missing = why_missing()
    if missing:
        return missing
    usable, named = module().instruction_sets(), os.environ.get("MBT_FAST_CPU") or None
    if not usable:
        return [
            "this CPU, or its operating system, offers neither AVX-512 nor AVX2 with FMA and F16C"
        ]
    if named is not None and named not in usable:
        return [f"MBT_FAST_CPU must be one of {', '.join(usable)} on this machine, got {named!r}"]
    return []


def cpu_kernels() -> tuple[ModuleType, str]:
    """The extension with the CPU kernels, and the instruction set that they are to use.

    Raises:
        ImportError: There is none; ``why_no_cpu_kernels`` says why.
    """
    loaded = _LOADED.get(MODULE) or _load(MODULE)
    named = os.environ.get("MBT_FAST_CPU")
    if named:
        return loaded, named
    for name in _usable():
        if name not in NEVER_RUN:
            return loaded, name
    raise ImportError("; ".join(why_no_cpu_kernels()))


def _usable() -> list[str]:
    """Instruction sets that this machine has, best first; kept, because every call asks."""
    if not _USABLE:
        _USABLE.extend(module().instruction_sets())
    return _USABLE


def instruction_set() -> str:
    """The instruction set of the CPU kernels: the best that has been run, or ``MBT_FAST_CPU``."""
    return cpu_kernels()[1]


def why_not_in_bfloat16() -> str | None:
    """Why the CPU kernels may lose to torch in bfloat16 on this machine, if they may."""
    if "amx" in _usable() and instruction_set() != "amx":
        return (
            "torch multiplies bfloat16 by AMX here; MBT_FAST_CPU=amx takes kernels for it, untried"
        )
    return None


def cpu_features() -> dict[str, bool]:
    """Instruction sets that this process may use, by name; empty without the CPU extension."""
    return {} if why_missing() else module().cpu_features()


def compiler() -> str:
    """The compiler that built the CPU extension.

    Raises:
        ImportError: There is none; ``why_no_cpu_kernels`` says why.
    """
    return module().compiler


def _load(name: str) -> ModuleType:
    _LOADED[name] = importlib.import_module(name)
    return _LOADED[name]
