"""``mbt-fast profile``: FLOPs, latency and memory against the fusion layer."""

import argparse
import json
import os
import shlex
import sys
from dataclasses import replace
from datetime import datetime, timezone
from math import ceil
from pathlib import Path

import torch

import mbt_fast
from mbt_fast.dispatch import check_name
from mbt_fast.errors import InputError
from mbt_fast.models import MBTConfig, list_models
from mbt_fast.models.registry import config_for
from mbt_fast.profiling import budget, figure3, machine, plan
from mbt_fast.profiling.measure import Setting, measure
from mbt_fast.report import format_table, render_html

HELP = "Show what fusing early, late or through bottlenecks costs: FLOPs, latency, memory."
PAPER_LAYERS = (0, 4, 8, 10, 12)  # of 12
MAX_ROUNDS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="mbt_base", choices=list_models())
    model.add_argument(
        "--clip-seconds", type=float, help="seconds of sound, 100 spectrogram frames each"
    )
    model.add_argument("--frames", type=int, help="video frames")
    model.add_argument("--tubelet", type=int, help="frames per RGB patch")
    model.add_argument(
        "--n-bottlenecks", type=int, nargs="+", metavar="B", help="bottleneck tokens (default 4)"
    )
    model.add_argument(
        "--fusion-layers", type=int, nargs="+", metavar="L", help="default: from early to late"
    )
    model.add_argument(
        "--fusions", nargs="+", choices=list(plan.FUSIONS), default=list(plan.FUSIONS)
    )
    run = parser.add_argument_group("measurement")
    run.add_argument("--mode", choices=plan.MODES, default="forward")
    run.add_argument("--batch-size", type=int, default=1)
    run.add_argument("--device", default="auto", help="auto, cpu or cuda[:index]")
    run.add_argument("--dtype", choices=["auto", *machine.DTYPES], default="auto")
    run.add_argument("--backend", default="auto", help="backend of every op; see mbt-fast info")
    run.add_argument(
        "--seconds", type=float, default=75.0, help="for the measurement, about (default: 75)"
    )
    run.add_argument("--flops-only", action="store_true", help="count, but do not run anything")
    choose = parser.add_argument_group("choice")
    choose.add_argument("--budget-gflops", type=float, help="name the best model within this")
    choose.add_argument("--budget-ms", type=float, help="name the best model within this latency")
    output = parser.add_argument_group("output")
    output.add_argument("--macs", action="store_true", help="count a multiply-add as one, not two")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the records")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots")
    output.add_argument(
        "--figure3", action="store_true", help="only reproduce the paper's Figure 3 (right)"
    )


def run(args: argparse.Namespace) -> int:
    """Count, measure, print and write."""
    if args.figure3:
        print(_figure3_table())
        return 0
    _check(args)
    setting, why_dtype = _setting(args)
    try:
        check_name(args.backend)
        base = _base_config(args)
        configs = plan.variants(base, _fusion_layers(args, base), args.fusions, _bottlenecks(args))
    except ValueError as error:
        raise InputError(str(error)) from error
    records = [
        plan.record_of(
            config,
            mode=setting.mode,
            batch_size=setting.batch_size,
            device=machine.device_name(setting.device),
            dtype=str(setting.dtype).removeprefix("torch."),
            backend=setting.backend,
        )
        for config in configs
    ]
    interrupted = False
    if not args.flops_only:
        interrupted = not _measure_into(records, configs, setting, args.seconds)
    conditions = _conditions(base, setting, why_dtype, records)
    _write(args, records, conditions)
    print(format_table(records, macs=args.macs))
    print()
    print("\n".join(f"{name}: {value}" for name, value in conditions.items()))
    _print_choice(args, records, base)
    return 130 if interrupted else 0


def _check(args: argparse.Namespace) -> None:
    for name in ("clip_seconds", "frames", "tubelet", "batch_size", "budget_gflops", "budget_ms"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise InputError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if args.budget_ms is not None and args.flops_only:
        raise InputError("--budget-ms must not go with --flops-only, which measures no latency")


def _base_config(args: argparse.Namespace) -> MBTConfig:
    """The model at its default fusion layer, with the input that was asked for."""
    config = config_for(args.model)
    size, patch = dict(config.input_size), dict(config.patch_size)
    if args.clip_seconds is not None:
        size["spectrogram"] = (ceil(100 * args.clip_seconds), size["spectrogram"][1])
    if args.frames is not None:
        size["rgb"] = (args.frames, *size["rgb"][1:])
    if args.tubelet is not None:
        patch["rgb"] = (args.tubelet, *patch["rgb"][1:])
    return replace(config, input_size=size, patch_size=patch)


def _fusion_layers(args: argparse.Namespace, base: MBTConfig) -> list[int]:
    if args.fusion_layers is not None:
        return sorted(set(args.fusion_layers))
    return sorted({round(layer * base.num_layers / 12) for layer in PAPER_LAYERS})


def _bottlenecks(args: argparse.Namespace) -> list[int]:
    return sorted(set(args.n_bottlenecks or [MBTConfig.n_bottlenecks]))


def _setting(args: argparse.Namespace) -> tuple[Setting, str]:
    device = machine.choose_device(args.device)
    dtype, why = machine.choose_dtype(args.dtype, device)
    return Setting(args.mode, args.batch_size, device, dtype, args.backend), why


def _measure_into(
    records: list[plan.Record], configs: list[MBTConfig], setting: Setting, seconds: float
) -> bool:
    """Measure each distinct computation once, fill in the records; False after Ctrl-C."""
    from tqdm import tqdm

    # The profiler that counts memory would announce itself on stderr for every model.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    distinct: list[MBTConfig] = []
    for config in map(plan.computed_as, configs):
        if config not in distinct:
            distinct.append(config)
    with tqdm(desc="profile", unit="call", file=sys.stderr, leave=False) as bar:
        measured = measure(
            distinct, setting, seconds=seconds, max_rounds=MAX_ROUNDS, on_call=bar.update
        )
    for record, config in zip(records, configs, strict=True):
        found = measured.get(distinct.index(plan.computed_as(config)))
        if found is not None:
            record.update(found.as_record(setting.batch_size))
    return len(measured) == len(distinct)


def _conditions(
    base: MBTConfig, setting: Setting, why_dtype: str, records: list[plan.Record]
) -> dict[str, str]:
    tokens = ", ".join(f"{base.n_tokens(m)} {m}" for m in base.modalities)
    sizes = ", ".join(f"{m} {'x'.join(map(str, base.input_size[m]))}" for m in base.modalities)
    rounds = sorted({record["rounds"] for record in records})
    step = "forward, loss and backward" if setting.mode == "train" else "forward, inference mode"
    return {
        "model": f"{base.num_layers} layers of width {base.hidden_size}, every layer in full",
        "input": f"{sizes}; own tokens: {tokens}",
        "call": f"{step}, batch {setting.batch_size}",
        "device": f"{machine.device_name(setting.device)}, {torch.get_num_threads()} CPU threads",
        "dtype": f"{records[0]['dtype']} ({why_dtype})",
        "rounds": f"{' to '.join(str(n) for n in dict.fromkeys([rounds[0], rounds[-1]]))} rounds, "
        "interleaved, after one warm-up call; late fusion without shared weights measured once",
        "memory": "weights, inputs and the peak of tensors allocated in the call",
        "versions": f"mbt_fast {mbt_fast.__version__}, torch {torch.__version__}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["mbt-fast", *sys.argv[1:]]),
    }


def _write(
    args: argparse.Namespace, records: list[plan.Record], conditions: dict[str, str]
) -> None:
    if args.json:
        stamped = [{**record, "conditions": conditions} for record in records]
        args.json.write_text(json.dumps(stamped, indent=1) + "\n")
    if args.html:
        args.html.write_text(render_html(records, conditions), encoding="utf-8")


def _print_choice(args: argparse.Namespace, records: list[plan.Record], base: MBTConfig) -> None:
    if args.budget_gflops is None and args.budget_ms is None:
        return
    limits = [
        f"{value:g} {unit}"
        for value, unit in ((args.budget_gflops, "GFLOPs"), (args.budget_ms, "ms"))
        if value is not None
    ]
    choice = budget.best_within(
        records, base, gflops=args.budget_gflops, milliseconds=args.budget_ms
    )
    print()
    if choice is None:
        print(f"Within {' and '.join(limits)}: no bottleneck model of this profile fits.")
        return
    record = choice.record
    print(
        f"Within {' and '.join(limits)}: fusion layer {record['fusion_layer']} with "
        f"B = {record['n_bottlenecks']}, {record['gflops']:.2f} GFLOPs; up to "
        f"B = {choice.largest_n_bottlenecks} fits.\nThe paper's mAP at that share of the depth is "
        f"{choice.paper_map:.2f} (Figure 3, AudioSet-mini); B from 4 to 1024 differ by under 0.5."
    )


def _figure3_table() -> str:
    from tabulate import tabulate

    rows = [
        (p.fusion, p.fusion_layer, p.ours, p.paper, 100 * p.element_wise_share, p.efficient)
        for p in figure3.points()
    ]
    headers = ["fusion", "L_f", "ours", "paper", "element-wise %", "efficient"]
    body = tabulate(rows, headers=headers, floatfmt=".2f")
    tokens = ", ".join(
        f"{figure3.CONDITIONS.n_tokens(m)} {m}" for m in figure3.CONDITIONS.modalities
    )
    return (
        "Figure 3 (right) of arXiv 2107.00135: GFLOPs, a multiply-add counted as one.\n"
        f"MBT-B, {tokens} tokens, B = {figure3.CONDITIONS.n_bottlenecks}; ours counts matrix\n"
        "products only, vanilla as the official code computes it; 'efficient' is what\n"
        f"Eq. 5-6 ask for.\n\n{body}"
    )
