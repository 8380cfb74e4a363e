"""``mbt-fast profile``: FLOPs, latency and memory against the fusion layer."""

import argparse
import json
import time
from pathlib import Path

from mbt_fast.cli import model_options
from mbt_fast.cli.outputs import check_writable
from mbt_fast.dispatch import check_name
from mbt_fast.errors import InputError
from mbt_fast.models import MBTConfig
from mbt_fast.profiling import (
    budget,
    figure3,
    machine,
    plots,
    runs,
    sweep,
    sweep_page,
    sweep_table,
    trace,
)
from mbt_fast.profiling.plan import Plan
from mbt_fast.profiling.runs import Setting

HELP = "Show what fusing early, late or through bottlenecks costs: FLOPs, latency, memory."
PAPER_LAYERS = (0, 4, 8, 10, 12)  # of 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument_group("model")
    model_options.add_model(add)
    add.add_argument("--n-bottlenecks", type=int, nargs="+", metavar="B", help="default: 4")
    add.add_argument(
        "--fusion-layers", type=int, nargs="+", metavar="L", help="default: from early to late"
    )
    add.add_argument("--fusions", nargs="+", choices=list(sweep.FUSIONS), default=sweep.FUSIONS)
    add = parser.add_argument_group("measurement")
    model_options.add_measurement(add, seconds=75)
    add.add_argument("--batch-size", type=int, default=1)
    add.add_argument("--backend", default="auto", help="backend of every op; see mbt-fast info")
    add.add_argument("--flops-only", action="store_true", help="count, but do not run anything")
    add = parser.add_argument_group("choice, in FLOPs of 2 per multiply-add")
    add.add_argument("--budget-gflops", type=float, help="name the best model within this")
    add.add_argument("--budget-ms", type=float, help="name the best model within this latency")
    add = parser.add_argument_group("output")
    add.add_argument("--macs", action="store_true", help="count a multiply-add as one in the table")
    add.add_argument("--json", type=Path, metavar="FILE", help="write the records")
    add.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots")
    add.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a Chrome trace of one call of one model"
    )
    add.add_argument(
        "--figure3", action="store_true", help="only reproduce the paper's Figure 3 (right)"
    )


def run(args: argparse.Namespace) -> int:
    """Count, measure, print and write."""
    _check(args)
    if args.figure3:
        print(figure3.table())
        return 0
    device = machine.choose_device(args.device)
    dtype, why_dtype = machine.choose_dtype(args.dtype, device)
    setting = Setting(args.mode, args.batch_size, device, dtype, args.backend)
    base, configs = _models(args)
    records = [sweep.record_of(config, setting) for config in configs]
    interrupted = False
    about_run: dict[str, str] = {}
    if not args.flops_only:
        interrupted, about_run = _measure(args, base, configs, setting, records)
    conditions = sweep.conditions(
        base,
        setting,
        why_dtype,
        records,
        measured=not args.flops_only,
        interrupted=interrupted,
        **about_run,
    )
    print(sweep_table.text(records, macs=args.macs), runs.as_lines(conditions), sep="\n\n")
    if args.budget_gflops is not None or args.budget_ms is not None:
        print("", budget.sentence(records, base, args.budget_gflops, args.budget_ms), sep="\n")
    if args.json:
        stamped = [{**record, "conditions": conditions} for record in records]
        args.json.write_text(json.dumps(stamped, indent=1) + "\n")
    if args.html:
        args.html.write_text(sweep_page.page(records, conditions), encoding="utf-8")
    if args.trace and not interrupted:
        usual = (config for config in configs if config.fusion_layer == base.fusion_layer)
        print("", trace.write_trace(args.trace, next(usual, configs[0]), setting), sep="\n")
    return 130 if interrupted else 0


def _measure(
    args: argparse.Namespace,
    base: MBTConfig,
    configs: list[MBTConfig],
    setting: Setting,
    records: list[sweep.Record],
) -> tuple[bool, dict[str, str]]:
    """Fill in the records; whether this was interrupted, and conditions of the run."""
    announced: list[Plan] = []
    load, start = machine.OtherLoad(), time.monotonic()
    with model_options.measuring("profile", args.batch_size, setting.device) as clock:

        def announce(plan: Plan) -> None:
            announced.append(plan)
            clock.expect(plan.seconds, plan.sentence())

        interrupted = sweep.measure(
            records, configs, base, setting, args.seconds, on_plan=announce, on_call=clock.tick
        )
    took = f"{time.monotonic() - start:.0f} s"
    said = "".join(f", {plan.seconds:.0f} s announced" for plan in announced)
    return interrupted, {"time": took + said, "machine": load.sentence()}


def _check(args: argparse.Namespace) -> None:
    model_options.check_numbers(args, "budget_gflops", "budget_ms")
    if args.flops_only and args.budget_ms is not None:
        raise InputError("--budget-ms must not go with --flops-only, which measures no latency")
    if args.flops_only and args.trace:
        raise InputError("--trace must not go with --flops-only, which runs nothing")
    files = [path for path in (args.json, args.html, args.trace) if path is not None]
    if args.figure3 and (files or args.budget_gflops or args.budget_ms):
        raise InputError("--figure3 must not go with a file or a budget: it only prints")
    if len(files) != len(set(files)):
        given = ", ".join(map(str, files))
        raise InputError(f"--json, --html and --trace must name different files, got {given}")
    for path in files:
        check_writable(path)
    if args.html:
        plots.check_installed("jinja2", "matplotlib")


def _models(args: argparse.Namespace) -> tuple[MBTConfig, list[MBTConfig]]:
    """The model that was asked for, and those that are compared."""
    try:
        check_name(args.backend)
        base = model_options.base_config(args)
        layers = args.fusion_layers or [
            round(layer * base.num_layers / 12) for layer in PAPER_LAYERS
        ]
        counts = sorted(set(args.n_bottlenecks or [MBTConfig.n_bottlenecks]))
        return base, sweep.variants(base, sorted(set(layers)), args.fusions, counts)
    except ValueError as error:
        raise InputError(str(error)) from error
