"""The machine a measurement runs on."""

import os
import platform
import re
import time
from pathlib import Path

import torch

from mbt_fast.errors import InputError
from mbt_fast.ops import extension

BUSY = 0.1  # of a CPU that each of our threads wants, taken by others
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name, after a try whether it works.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:index"``, or ``"auto"``: a CUDA GPU if there is one,
            else the CPU. Other devices are refused: the clocks here cannot wait for them.

    Raises:
        InputError: The device is another, does not exist, or does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(:\d{1,3})?", name)
    if match is None:
        raise InputError(f"device must be auto, cpu or cuda[:index], got {name!r}")
    if name != "cpu" and int((match[1] or ":0")[1:]) >= torch.cuda.device_count():
        raise InputError(f"device must exist, got {name!r}; {torch.cuda.device_count()} GPUs here")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"device {name} does not work: {reason}") from error
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of that name, or with ``"auto"`` the machine's best precision, and why it is.

    Best is bfloat16 where the hardware multiplies it natively, and float32 elsewhere.
    """
    if name != "auto":
        return DTYPES[name], "asked for"
    if device.type == "cuda":
        return torch.bfloat16, "the device is a GPU"
    if extension.why_missing():
        return (
            torch.float32,
            f"the CPU's instruction sets are unknown: {extension.why_missing()[0]}",
        )
    features = extension.cpu_features()
    for flag, words in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        if features[flag]:
            return torch.bfloat16, f"the CPU has {words}"
    return torch.float32, "the CPU has no bfloat16 products"


def dtype_name(dtype: torch.dtype) -> str:
    """Such as ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """What its maker calls a device; of a CPU family and model too, where the system tells them.

    Hosts may hide which one it is: a virtual machine's "AMD EPYC" is any of five generations.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    return (
        (cpu_name(cpuinfo.read_text()) if cpuinfo.exists() else None)
        or platform.processor()
        or platform.machine()
    )


def cpu_name(cpuinfo: str) -> str | None:
    """``AMD EPYC (family 25, model 17)``, from the text that Linux has of the first CPU."""
    pairs = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    known = {key.strip(): value.strip() for key, _, value in pairs}
    name, family, model = map(known.get, ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})" if name and family and model else name


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take: of the GPU, or what the system counts as available."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        if found:
            return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class OtherLoad:
    """What other processes, and other guests of the host, take of the CPUs since it was made."""

    def __init__(self) -> None:
        """From now."""
        self._before, self._at = self._seconds(), time.monotonic()

    @staticmethod
    def _seconds() -> float | None:
        """CPU seconds of all but this process, as far as the system tells."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        own = os.times()
        return busy_seconds(stat.read_text()) - own.user - own.system

    def sentence(self) -> str:
        """How busy the machine was; that its times are too long, if it was."""
        now, passed = self._seconds(), time.monotonic() - self._at
        if now is None or self._before is None:
            return "unknown on this system"
        total, wanted = os.cpu_count() or 1, torch.get_num_threads()
        others = max(0.0, now - self._before) / max(passed, 1e-9)
        said = f"others took {others:.1f} of {total} CPUs"
        if others < BUSY * wanted + max(0, total - wanted):
            return f"quiet, {said}"
        return f"BUSY, {said}: times are longer than on a quiet machine"


def busy_seconds(stat: str) -> float:
    """CPU seconds that are neither idle nor waiting, from the text that Linux has of all CPUs."""
    user, nice, system, _idle, _wait, *rest = map(int, stat.partition("\n")[0].split()[1:])
    interrupts_and_stolen = rest[:3]  # what follows is part of user and nice
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch failed for want of memory, for which a CPU has no error of its own."""
    words = ("allocate memory", "Storage size calculation overflowed", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error) for word in words
    )
