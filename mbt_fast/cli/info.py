"""``mbt-fast info``: what is installed, what this machine offers, and who may run the ops."""

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import torch

import mbt_fast
from mbt_fast import dispatch
from mbt_fast.kernels import sources
from mbt_fast.ops import extension
from mbt_fast.ops.dispatch import verdict
from mbt_fast.profiling.machine import device_name

HELP = "Show versions, devices, the compiled part, and every backend with its reasons."
OPTIONAL = (
    *("triton", "av", "numpy", "msgpack", "safetensors", "tabulate", "tqdm", "jinja2"),
    *("matplotlib", "tomli_w"),
)
ABSENT = "not installed"
Facts = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print all facts, for bug reports")
    parser.add_argument("--verbose", action="store_true", help="a line for each fact")


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in (facts if args.verbose else _summary(facts)).items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, entry in value.items():
                print(f"  {key:<12} {entry}")
        else:
            print(f"{name}: {value}")
    if not args.verbose:
        print("more: --verbose shows it line by line, --json for bug reports")
    return 0


def _summary(facts: Facts) -> Facts:
    """The facts on one screen: details of kernels and packages become one line each."""
    packages, cuda = facts["packages"], facts["cuda part"]
    installed = [f"{name} {version}" for name, version in packages.items() if version != ABSENT]
    missing = [name for name, version in packages.items() if version == ABSENT]
    verified = facts["kernels verified on a GPU"]
    passed = [name for name, said in verified.items() if not said.startswith("no")]
    return facts | {
        "packages": "; not installed: ".join(filter(None, map(", ".join, (installed, missing)))),
        "devices": ", ".join(f"{name} {what}" for name, what in facts["devices"].items()),
        "cuda part": f"for {cuda['for']}, {cuda['compiler']}" if isinstance(cuda, dict) else cuda,
        "cpu features": ", ".join(name for name, has in facts["cpu features"].items() if has),
        "cpu kernels": facts["cpu kernels"]["in use"],
        "kernels verified on a GPU": f"{len(passed)} of {len(verified)}: {', '.join(passed)}"
        if passed
        else f"none of {len(verified)}",
        "attention, predicted": "--verbose has TFLOP/s on an H100, from machine code, not measured",
    }


def collect() -> Facts:
    """Everything that ``info`` shows, as plain data."""
    return {
        "mbt_fast": mbt_fast.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in OPTIONAL},
        "cpu threads": torch.get_num_threads(),
        "devices": _devices(),
        "compiled part": "; ".join(extension.why_missing()) or f"built by {extension.compiler()}",
        "cuda part": "; ".join(extension.why_no_cuda_kernels()) or _cuda_build(),
        "cpu features": extension.cpu_features(),
        "cpu kernels": {"in use": _cpu_kernels(), **extension.NEVER_RUN},
        "backends": {row.name: verdict(row) for row in dispatch.BACKENDS},
        "kernels verified on a GPU": {
            **{
                f"triton {kernel}": _verified(kernel, sources.source_hash(kernel), "triton")
                for kernel in sources.KERNELS
            },
            "cuda": _cuda_verified(),
        },
        "attention, predicted": _predicted(),
    }


def _cpu_kernels() -> str:
    return "; ".join(extension.why_no_cpu_kernels()) or extension.instruction_set()


def _cuda_build() -> dict[str, str]:
    """What nvcc made: per kernel what it needs."""
    module = extension.cuda_module()
    facts = {
        "compiler": module.compiler,
        "for": module.architectures,
        "sources": module.sources,
        "ptxas warns": "; ".join(module.ptxas_warnings) or "of nothing",
    }
    for kernel, (registers, _, spilled) in module.ptxas.items():
        shared = module.shared_memory.get(" ".join(kernel.split()[::2]), 0)
        facts[kernel] = (
            f"{registers} registers, {spilled} bytes spilled, {shared} bytes of shared memory"
        )
    return facts


def _predicted() -> dict[str, str]:
    """By backend and pass: what a model makes of the machine code; nothing here was measured."""
    record = sources.predictions()
    of = record["of"]
    shape = f"{of['device']}, batch {of['batch']}, {of['heads']} heads of {of['head_dim']}"
    return {
        name: ", ".join(f"{found['tflops']} TFLOP/s at {rows} rows" for rows, found in by.items())
        + f" ({shape}; from machine code, not measured)"
        for name, by in record["predicted"].items()
    }


def _cuda_verified() -> str:
    if extension.why_no_cuda_kernels():
        return "no: not built"
    return _verified("cuda", extension.cuda_module().sources, "cuda")


def _verified(kernel: str, digest: str, with_version: str) -> str:
    """Where exactly these sources passed the GPU suite, from the committed records."""
    said = [
        f"{entry['device']}, {entry['date']}, {with_version.capitalize()} {entry[with_version]}"
        for entry in sources.verifications(kernel, digest)
    ]
    return "; ".join(said) or "no: the present source has never run on a GPU"


def _devices() -> dict[str, str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return {name: device_name(torch.device(name)) for name in ("cpu", *gpus)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT
