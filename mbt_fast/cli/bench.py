"""``mbt-fast bench``: what is fastest on this machine for this model."""

import argparse
import json
from pathlib import Path

from mbt_fast.cli import model_options
from mbt_fast.cli.outputs import check_writable
from mbt_fast.errors import InputError
from mbt_fast.models import MBTConfig
from mbt_fast.profiling import machine, recommend, runs
from mbt_fast.profiling.comparison import ALIKE, Comparisons
from mbt_fast.profiling.runs import Setting

HELP = "Compare backends and options per op, layer and model, and mark the fastest."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    model_options.add_model(parser.add_argument_group("model"))
    run = parser.add_argument_group("measurement")
    model_options.add_measurement(run, seconds=60)
    run.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        metavar="N",
        help="the first compares everything; default: 1, then doubled",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write rows and suggestion")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    model_options.check_numbers(args)
    if args.json:
        check_writable(args.json)
    try:
        config = model_options.base_config(args)
    except ValueError as error:
        raise InputError(str(error)) from error
    device = machine.choose_device(args.device)
    dtype, why_dtype = machine.choose_dtype(args.dtype, device)
    first, *others = args.batch_size or [1]
    found = Comparisons(Setting(args.mode, first, device, dtype))
    load = machine.OtherLoad()
    with model_options.measuring("bench", first, device) as clock:
        clock.expect(args.seconds)
        found.on_call = clock.tick
        chosen = recommend.run(
            found,
            config,
            seconds=args.seconds,
            sizes=others if args.batch_size else None,
            any_dtype=args.dtype == "auto",
        )
    conditions = _conditions(config, found, why_dtype, load.sentence())
    code = chosen.code() if chosen else None
    said = code or "no line of code to copy: the comparison of the models did not end"
    print(found.text(), said, runs.as_lines(conditions), sep="\n\n")
    if args.json:
        document = {
            "conditions": conditions,
            "config": config.to_dict(),
            "rows": found.records(),
            "dispatch": found.verdicts(),
            "suggestion": recommend.suggestion(found, chosen) if chosen else [],
            "code": code,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 130 if found.cut_short == recommend.INTERRUPTED else 0


def _conditions(config: MBTConfig, found: Comparisons, why_dtype: str, load: str) -> dict[str, str]:
    slots = f", B = {config.n_slots}" if config.n_slots else ""
    return runs.conditions(
        config,
        found.setting,
        why_dtype,
        fusion=f"{config.fusion} at layer {config.fusion_layer}{slots}",
        times="medians of interleaved rounds after warm-up; ratios round by round, with the "
        "middle 60 %" + (f"; {found.cut_short}" if found.cut_short else ""),
        fastest=f"least time per clip, and up to {ALIKE} times as much",
        machine=load,
        memory="peak: tensors allocated in the call, of the model with its weights; kept: for the "
        "backward",
    )
