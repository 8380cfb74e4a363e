"""One fusion layer and the whole model on a CPU: ``python -m benchmarks.cpu_layer --out FILE``.

    layer    ours, eager PyTorch, eager under torch.compile
    model    ours and eager, both with every layer in full
    parts    what a layer of ours consists of, each part alone, and its floor: FLOPs by the rate of
             torch's own square matrix product, bytes by the rate of its copy

Eager is ``benchmarks.eager``. MBT-B, 8 frames and 8 s, one clip, inference mode. Variants are
interleaved; ``ratio`` is eager's median by that of the variant.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from benchmarks import eager
from benchmarks.cpu_attention import ceilings
from benchmarks.environment import stamp
from mbt_fast import MBT, bottleneck_attention, native
from mbt_fast.functional import bias_gelu, share_slots_
from mbt_fast.models.registry import config_for
from mbt_fast.profiling.measure import Setting, build_models, random_inputs
from mbt_fast.testing.timing import interleaved_times

CPU = torch.device("cpu")
Record = dict[str, Any]
Run = Callable[[], object]


def main() -> None:
    """Measure, print, record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the records as JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default="mbt_base", help="mbt_tiny for a trial")
    args = parser.parse_args()
    torch.set_num_threads(2)
    rates = {"gflops": ceilings(), "copy_gb_per_s": copy_rate()}
    records = []
    for record in measure(args.model, args.rounds, rates):
        records.append(record)
        print(line(record), flush=True)
    if args.out:
        document = {
            "environment": stamp(),
            "command": "python -m benchmarks.cpu_layer",
            "instruction_set": native.instruction_set(),
            "threads": torch.get_num_threads(),
            "ceilings": rates,
            "records": records,
        }
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def measure(name: str, rounds: int, rates: dict[str, Any]) -> Iterator[Record]:
    """All entries, in both dtypes."""
    for dtype in (torch.bfloat16, torch.float32):
        setting = Setting("forward", 1, CPU, dtype, "auto")
        (model,) = build_models([config_for(name)], setting)
        inputs = random_inputs(model.config, setting)
        own, slots = streams(model, dtype)
        yield from timed("layer", layer_variants(model, own, slots), dtype, rounds)
        model_variants = {
            "eager": lambda model=model, inputs=inputs: eager.forward(model, inputs),
            "ours": lambda model=model, inputs=inputs: model(inputs),
        }
        yield from timed("model", model_variants, dtype, max(3, rounds // 3))
        yield from parts(model, own, slots, rounds, rates)


def streams(model: MBT, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Own tokens of each modality, and the bottleneck tokens."""
    config = model.config
    own = {
        m: torch.randn(1, config.n_tokens(m), config.hidden_size, dtype=dtype)
        for m in config.modalities
    }
    return own, torch.randn(1, config.n_slots, config.hidden_size, dtype=dtype)


def layer_variants(model: MBT, own: dict[str, Tensor], slots: Tensor) -> dict[str, Run]:
    """The last layer, ways to run it."""
    layer = model.layers[-1]
    joined = {m: torch.cat([x, slots], dim=1) for m, x in own.items()}
    compiled = torch.compile(eager.fusion_layer_forward)
    return {
        "eager": lambda: eager.fusion_layer_forward(layer, own, slots),
        "compiled": lambda: compiled(layer, own, slots),
        "ours": lambda: layer(joined, {}, n_slots=slots.shape[1]),
    }


def timed(
    entry: str, variants: Mapping[str, Run], dtype: torch.dtype, rounds: int
) -> Iterator[Record]:
    """One record per variant."""
    variants = {name: torch.inference_mode()(run) for name, run in variants.items()}
    for run in variants.values():
        run()
        run()
    times = interleaved_times(variants, CPU, seconds=1e9, max_rounds=rounds).seconds
    ms = {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    for name in variants:
        yield {
            "entry": entry,
            "variant": name,
            "dtype": str(dtype).removeprefix("torch."),
            "ms_median": ms[name],
            "ratio": ms["eager"] / ms[name] if "eager" in ms else None,
            "rounds": rounds,
        }


def parts(
    model: MBT, own: dict[str, Tensor], slots: Tensor, rounds: int, rates: dict[str, Any]
) -> Iterator[Record]:
    """The parts of a layer of ours, both streams together, each with its floor."""
    blocks = [model.layers[-1].block_of(m) for m in own]
    xs = [torch.cat([x, slots], dim=1) for x in own.values()]
    width, dtype = xs[0].shape[-1], xs[0].dtype
    packed = [block.attn.packed(x) for block, x in zip(blocks, xs, strict=True)]
    hidden = [block.mlp.fc1(x) for block, x in zip(blocks, xs, strict=True)]
    rows, n_slots = sum(x.shape[1] for x in xs), slots.shape[1]
    size = rows * width * dtype.itemsize

    def each(run: Callable[..., Tensor], inputs: list[Tensor]) -> Run:
        return lambda: [run(block, x) for block, x in zip(blocks, inputs, strict=True)]

    runs = {
        "norm, twice": each(lambda b, x: (norm(b.norm1, x), norm(b.norm2, x))[1], xs),
        "qkv": each(lambda b, x: apply_linear(b.attn.qkv, x), xs),
        "attention": lambda: bottleneck_attention(packed, n_slots),
        "proj": each(lambda b, x: apply_linear(b.attn.proj, x), xs),
        "residual, twice": each(lambda b, x: (x + x, x + x)[1], xs),
        "fc1": each(lambda b, x: apply_linear(b.mlp.fc1, x), xs),
        "gelu": each(lambda b, x: bias_gelu(x), hidden),
        "fc2": each(lambda b, x: apply_linear(b.mlp.fc2, x), hidden),
        "shared slots": lambda: share_slots_(xs, n_slots),
    }
    pairs = sum(x.shape[1] ** 2 for x in xs)
    linear_flops = 2 * rows * width**2
    flops = {"qkv": 3, "proj": 1, "fc1": 4, "fc2": 4}
    moved = {"norm, twice": 4, "residual, twice": 6, "gelu": 8}
    for record in timed("parts", runs, dtype, rounds):
        name = record["variant"]
        rate = rates["gflops"][record["dtype"]] * 1e6
        if name == "attention":
            floor = 4 * pairs * width / rate
        elif name in flops:
            floor = flops[name] * linear_flops / rate
        else:
            floor = moved.get(name, 0) * size / rates["copy_gb_per_s"] / 1e6
        yield record | {"floor_ms": floor}


def apply_linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    """A Linear, without the call of a module."""
    return linear(x, module.weight, module.bias)


def norm(module: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """A LayerNorm, likewise."""
    return layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)


def copy_rate() -> float:
    """Bytes read and written per nanosecond by torch's copy of 64 MB, as GB/s."""
    source = torch.empty(2**24).fill_(1)
    target = torch.empty_like(source)
    runs = {"copy": lambda: target.copy_(source)}
    times = interleaved_times(runs, CPU, seconds=1e9, max_rounds=11).seconds["copy"]
    return 2 * source.nbytes / statistics.median(times) / 1e9


def line(record: Record) -> str:
    """One record as text."""
    more = f"floor {record['floor_ms']:6.2f} ms" if "floor_ms" in record else ""
    more = more or f"{record['ratio']:.2f}x"
    head = f"{record['entry']:<6} {record['dtype']:<9} {record['variant']:<16}"
    return f"{head} {record['ms_median']:8.2f} ms  {more}"


if __name__ == "__main__":
    main()
