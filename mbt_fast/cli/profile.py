"""``mbt-fast profile``: FLOPs, latency and memory against the fusion layer."""

import argparse
import json
import os
import sys
from pathlib import Path

from mbt_fast.cli import model_options, profile_text
from mbt_fast.cli.outputs import check_writable
from mbt_fast.dispatch import check_name
from mbt_fast.errors import InputError
from mbt_fast.models import MBTConfig
from mbt_fast.profiling import machine, plan
from mbt_fast.profiling.measure import Setting, measure
from mbt_fast.profiling.trace import write_trace
from mbt_fast.report import format_table, render_html

HELP = "Show what fusing early, late or through bottlenecks costs: FLOPs, latency, memory."
PAPER_LAYERS = (0, 4, 8, 10, 12)  # of 12
MAX_ROUNDS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    model = parser.add_argument_group("model")
    model_options.add_arguments(model)
    model.add_argument(
        "--n-bottlenecks", type=int, nargs="+", metavar="B", help="bottleneck tokens (default: 4)"
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
    choose = parser.add_argument_group("choice, in FLOPs of 2 per multiply-add")
    choose.add_argument("--budget-gflops", type=float, help="name the best model within this")
    choose.add_argument("--budget-ms", type=float, help="name the best model within this latency")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--macs", action="store_true", help="count a multiply-add as one in the printed table"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="write the records")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots")
    output.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write a Chrome trace of one call of one model, its ranges named by layer, modality "
        "and part",
    )
    output.add_argument(
        "--figure3", action="store_true", help="only reproduce the paper's Figure 3 (right)"
    )


def run(args: argparse.Namespace) -> int:
    """Count, measure, print and write."""
    _check(args)
    if args.figure3:
        print(profile_text.figure3_table())
        return 0
    setting, why_dtype = _setting(args)
    try:
        check_name(args.backend)
        base = model_options.base_config(args)
        configs = plan.variants(base, _fusion_layers(args, base), args.fusions, _bottlenecks(args))
    except ValueError as error:
        raise InputError(str(error)) from error
    records = [_unmeasured(config, setting) for config in configs]
    interrupted = False
    if not args.flops_only:
        interrupted = _measure_into(records, configs, setting, args.seconds)
    conditions = profile_text.conditions(base, setting, why_dtype, records, interrupted)
    print(format_table(records, macs=args.macs))
    print("", *(f"{name}: {value}" for name, value in conditions.items()), sep="\n")
    if args.budget_gflops is not None or args.budget_ms is not None:
        print("", profile_text.choice(args.budget_gflops, args.budget_ms, records, base), sep="\n")
    _write(args, records, conditions)
    if args.trace and not interrupted:
        traced = _traced(configs, base)
        write_trace(args.trace, traced, setting)
        print("", profile_text.traced(args.trace, traced), sep="\n")
    return 130 if interrupted else 0


def _check(args: argparse.Namespace) -> None:
    model_options.check_numbers(
        args, (*model_options.CHANGES, "batch_size", "budget_gflops", "budget_ms")
    )
    if args.budget_ms is not None and args.flops_only:
        raise InputError("--budget-ms must not go with --flops-only, which measures no latency")
    if args.trace and args.flops_only:
        raise InputError("--trace must not go with --flops-only, which runs nothing")
    files = [path for path in (args.json, args.html, args.trace) if path is not None]
    if args.figure3 and (files or args.budget_gflops or args.budget_ms):
        raise InputError("--figure3 must not go with a file or a budget: it only prints")
    if len(files) != len(set(files)):
        given = ", ".join(map(str, files))
        raise InputError(f"--json, --html and --trace must name different files, got {given}")
    for path in files:
        check_writable(path)


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


def _unmeasured(config: MBTConfig, setting: Setting) -> plan.Record:
    return plan.record_of(
        config,
        mode=setting.mode,
        batch_size=setting.batch_size,
        device=machine.device_name(setting.device),
        dtype=str(setting.dtype).removeprefix("torch."),
        backend=setting.backend,
    )


def _measure_into(
    records: list[plan.Record], configs: list[MBTConfig], setting: Setting, seconds: float
) -> bool:
    """Measure each distinct computation once and fill in the records; whether it was cut short."""
    from tqdm import tqdm

    # The profiler that counts memory would announce itself on stderr for every model.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    distinct = list(dict.fromkeys(map(plan.computed_as, configs)))
    try:
        with tqdm(desc="profile", unit="call", file=sys.stderr, leave=False) as bar:
            outcome = measure(
                distinct, setting, seconds=seconds, max_rounds=MAX_ROUNDS, on_call=bar.update
            )
    except RuntimeError as error:
        raise _as_input_error(error, setting) from error
    for record, config in zip(records, configs, strict=True):
        found = outcome.measured.get(distinct.index(plan.computed_as(config)))
        if found is not None:
            record.update(found.as_record(setting.batch_size))
    return outcome.interrupted


def _traced(configs: list[MBTConfig], base: MBTConfig) -> MBTConfig:
    """The model at its usual fusion layer, if it is compared; else the first."""
    usual = (config for config in configs if config.fusion_layer == base.fusion_layer)
    return next(usual, configs[0])


def _as_input_error(error: RuntimeError, setting: Setting) -> RuntimeError | InputError:
    """Memory that does not suffice is the user's to mend; anything else is a bug, and stays one."""
    if machine.is_out_of_memory(error):
        return InputError(
            f"--batch-size must fit into memory: {setting.batch_size} clips do not fit on "
            f"{setting.device}"
        )
    return error


def _write(
    args: argparse.Namespace, records: list[plan.Record], conditions: dict[str, str]
) -> None:
    if args.json:
        stamped = [{**record, "conditions": conditions} for record in records]
        args.json.write_text(json.dumps(stamped, indent=1) + "\n")
    if args.html:
        args.html.write_text(render_html(records, conditions), encoding="utf-8")
