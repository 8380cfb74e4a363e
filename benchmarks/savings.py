"""Each exact saving on and off: ``python -m benchmarks.savings --out savings.json``.

    forward    MBT-B, one clip: eager PyTorch, all rows of the last layer, CLS rows only
    step       forward and backward of MBT-S on one clip, each saving alone and all together
    depth      a step of MBT-S under stochastic depth, by drop rate, dropped branches masked or
               skipped
    bytes      what one fusion layer keeps for its backward

Eager is ``benchmarks.eager``: every layer in full, one call of torch's attention per modality.
Variants of an entry are interleaved in rounds; ``ratio`` is the median over the rounds of the time
of the entry's first variant by that of this one, so that a drift of the machine hits both. Where
others are at work on it, ``--shared`` takes one thread, and counts its own time on the CPU.
``--smoke`` runs everything on a tiny model.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.environment import stamp
from mbt_fast import MBT, MBTConfig
from mbt_fast.models.registry import config_for
from mbt_fast.profiling.measure import MIB, Setting, build_models, random_inputs
from mbt_fast.testing import interleaved_times, peak_memory, saved_bytes

Record = dict[str, Any]
Inputs = Mapping[str, Tensor]
Run = Callable[[], object]

CPU = torch.device("cpu")
NONE: dict[str, Any] = {"cls_only": False, "skip_dropped": False, "memory": "full"}
STEPS = {
    "no savings": NONE,
    "cls_only": {**NONE, "cls_only": True},
    "memory reduced": {**NONE, "memory": "reduced"},
    "memory minimal": {**NONE, "memory": "minimal"},
    "together": {"cls_only": True, "skip_dropped": True, "memory": "reduced"},
}
DROP_RATES = (0.0, 0.3, 0.6)
SHORT = {"rgb": (1, 224, 224), "spectrogram": (192, 128)}  # so that a batch of 8 does not take long
DTYPES = (torch.bfloat16, torch.float32)


def main() -> None:
    """Measure, print, and record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the records as JSON")
    parser.add_argument("--seconds", type=float, default=120.0, help="about, for each entry")
    parser.add_argument("--shared", action="store_true", help="others are at work on this machine")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, three rounds")
    args = parser.parse_args()
    clock = time.perf_counter
    if args.shared:
        torch.set_num_threads(1)
        clock = time.process_time
    conditions = {
        "command": " ".join(["python -m benchmarks.savings", *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
        "clock": clock.__name__,
    }
    records: list[Record] = []
    for record in measure(Timing(0.0 if args.smoke else args.seconds, clock), smoke=args.smoke):
        records.append(record)
        print(format_record(record), flush=True)
        if args.out:  # after every variant: a run that is cut keeps what it has
            document = {"environment": stamp(), **conditions, "records": records}
            args.out.write_text(json.dumps(document, indent=1) + "\n")


class Timing(NamedTuple):
    """For how long, and by which clock, an entry is measured."""

    seconds: float
    clock: Callable[[], float] = time.perf_counter


def measure(timing: Timing, *, smoke: bool = False) -> Iterator[Record]:
    """All entries."""
    config, small = config_for("mbt_base"), config_for("mbt_small")
    if smoke:
        config = small = config_for("mbt_tiny")
    for dtype in DTYPES:
        yield layer_bytes(config, dtype)
    for dtype in DTYPES:
        yield from forward(config, dtype, timing)
    for rate in DROP_RATES:
        size = small.input_size if smoke else SHORT
        deep = replace(small, stochastic_depth=rate, input_size=size)
        yield from depth(deep, torch.bfloat16, timing)
    for dtype in DTYPES:
        yield from step(small, dtype, timing)


def forward(config: MBTConfig, dtype: torch.dtype, timing: Timing) -> Iterator[Record]:
    """One clip, in inference mode."""
    model, inputs = _model(config, "forward", 1, dtype)

    def run(**savings: Any) -> Run:
        return torch.inference_mode()(lambda: model.set_savings(**savings)(inputs))

    variants = {
        "eager": torch.inference_mode()(lambda: eager.forward(model, inputs)),
        "cls_only off": run(cls_only=False),
        "cls_only on": run(cls_only=True),
    }
    yield from _timed("forward", variants, timing, config, 1, dtype)


def step(config: MBTConfig, dtype: torch.dtype, timing: Timing) -> Iterator[Record]:
    """Forward and backward of one clip."""
    model, inputs = _model(config, "train", 1, dtype)

    def run(savings: Mapping[str, Any]) -> Run:
        return lambda: _backward(model, model.set_savings(**savings)(inputs))

    variants = {name: run(savings) for name, savings in STEPS.items()}
    variants = {"eager": lambda: _backward(model, eager.forward(model, inputs)), **variants}
    yield from _timed("step", variants, timing, config, 1, dtype)


def depth(config: MBTConfig, dtype: torch.dtype, timing: Timing) -> Iterator[Record]:
    """Forward and backward of eight short clips; every round draws other survivors."""
    model, inputs = _model(config, "train", 8, dtype)
    model.set_savings(**STEPS["together"])

    def run(skip: bool) -> Run:
        seeds = count()  # the same ones for both variants

        def call() -> None:
            torch.manual_seed(next(seeds))
            _backward(model, model.set_savings(skip_dropped=skip)(inputs))

        return call

    variants = {"masked": run(skip=False), "skipped": run(skip=True)}
    yield from _timed("depth", variants, timing, config, 8, dtype)


def layer_bytes(config: MBTConfig, dtype: torch.dtype) -> Record:
    """Bytes that a fusion layer keeps for its backward, parameters not counted."""
    model, _ = _model(config, "train", 1, dtype)
    layer, width = model.layers[-1], config.hidden_size
    own = {
        m: torch.randn(1, config.n_tokens(m), width, dtype=dtype, requires_grad=True)
        for m in config.modalities
    }
    slots = torch.randn(1, config.n_slots, width, dtype=dtype, requires_grad=True)
    joined = {m: torch.cat([x, slots], dim=1).detach().requires_grad_() for m, x in own.items()}
    parameters = list(layer.parameters())
    kept = {"eager": saved_bytes(lambda: eager.fusion_layer_forward(layer, own, slots), parameters)}
    for memory in ("full", "reduced", "minimal"):
        model.set_savings(memory=memory)
        kept[memory] = saved_bytes(lambda: layer(joined, {}, n_slots=config.n_slots), parameters)
    share = {name: value / kept["eager"] for name, value in kept.items()}
    return {"entry": "bytes", "dtype": _name(dtype), "bytes": kept, "share_of_eager": share}


def _model(config: MBTConfig, mode: str, batch: int, dtype: torch.dtype) -> tuple[MBT, Inputs]:
    setting = Setting(mode, batch, CPU, dtype, "auto")
    return build_models([config], setting)[0], random_inputs(config, setting)


def _backward(model: MBT, logits: Tensor) -> None:
    logits.square().sum().backward()
    model.zero_grad(set_to_none=True)


def _timed(
    entry: str,
    variants: Mapping[str, Run],
    timing: Timing,
    config: MBTConfig,
    batch: int,
    dtype: torch.dtype,
) -> Iterator[Record]:
    """Peak memory in the warm-up, then times, as one record per variant."""
    load = [os.getloadavg()[0]]
    peaks = {name: peak_memory(run, CPU) for name, run in variants.items()}
    times = interleaved_times(
        variants, CPU, seconds=timing.seconds, min_rounds=3, clock=timing.clock
    ).seconds
    load.append(os.getloadavg()[0])
    first = times[next(iter(variants))]
    for name, values in times.items():
        tails = quantiles(values, n=5, method="inclusive")
        ratios = [base / value for base, value in zip(first, values, strict=True)]
        yield {
            "entry": entry,
            "variant": name,
            "width": config.hidden_size,
            "rows": [config.n_tokens(m) for m in config.modalities],
            "stochastic_depth": config.stochastic_depth,
            "batch": batch,
            "dtype": _name(dtype),
            "ms_median": 1e3 * median(values),
            "ms_p20": 1e3 * tails[0],
            "ms_p80": 1e3 * tails[3],
            "ratio": median(ratios),
            "rounds": len(values),
            "peak_memory_mb": peaks[name] / MIB,
            "load_average": load,
        }


def format_record(record: Record) -> str:
    """One line."""
    if record["entry"] == "bytes":
        shares = ", ".join(f"{k} {v:.3f}" for k, v in record["share_of_eager"].items())
        return f"bytes    {record['dtype']:<9} {shares}"
    return (
        f"{record['entry']:<8} {record['dtype']:<9} rate {record['stochastic_depth']:.1f}  "
        f"{record['variant']:<15} {record['ms_median']:8.1f} ms  x{record['ratio']:.3f}  "
        f"{record['peak_memory_mb']:7.0f} MB  {record['rounds']} rounds"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
