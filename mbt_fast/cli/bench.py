"""``mbt-fast bench``: what is fastest on this machine for this model, and what to take."""

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mbt_fast.bench import models, ops, suggest, ways
from mbt_fast.bench.comparison import Bench, Deadline
from mbt_fast.bench.layers import measure_layer
from mbt_fast.bench.suggest import Suggestion
from mbt_fast.cli import bench_text, model_options
from mbt_fast.cli.outputs import check_writable
from mbt_fast.errors import InputError
from mbt_fast.models import MBTConfig
from mbt_fast.profiling import machine, plan
from mbt_fast.profiling.measure import Setting

HELP = "Find what is fastest here, per op, layer and model, and say what to take."
SHARES = {"ops": 0.15, "layer": 0.2, "ways": 0.7}  # of what is left; batch sizes get the rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    model_options.add_arguments(parser.add_argument_group("model"))
    run = parser.add_argument_group("measurement")
    run.add_argument("--mode", choices=plan.MODES, default="forward")
    run.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        metavar="N",
        help="the first compares everything; default: 1, doubled while throughput rises",
    )
    run.add_argument("--device", default="auto", help="auto, cpu or cuda[:index]")
    run.add_argument("--dtype", choices=["auto", *machine.DTYPES], default="auto")
    run.add_argument("--seconds", type=float, default=60.0, help="about, for all (default: 60)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write rows and suggestion")


@dataclass
class Results:
    """What a run has found, all of it or up to a KeyboardInterrupt."""

    bench: Bench
    suggestions: list[Suggestion] = field(default_factory=list)
    code: str | None = None
    interrupted: bool = False


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    model_options.check_numbers(args, (*model_options.CHANGES, "batch_size"))
    if args.json:
        check_writable(args.json)
    try:
        config = model_options.base_config(args)
    except ValueError as error:
        raise InputError(str(error)) from error
    device = machine.choose_device(args.device)
    dtype, why_dtype = machine.choose_dtype(args.dtype, device)
    first = args.batch_size[0] if args.batch_size else 1
    setting = Setting(args.mode, first, device, dtype, "auto")
    results = _measure(config, setting, args, why_dtype)
    conditions = bench_text.conditions(config, setting, why_dtype, results.interrupted)
    print(bench_text.tables(results.bench))
    print("", bench_text.suggestion(results.suggestions, results.code), sep="\n")
    print("", *(f"{name}: {value}" for name, value in conditions.items()), sep="\n")
    if args.json:
        document = {
            "conditions": conditions,
            "config": config.to_dict(),
            "rows": bench_text.records(results.bench),
            "dispatch": bench_text.verdicts(results.bench),
            "suggestion": [vars(suggestion) for suggestion in results.suggestions],
            "code": results.code,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 130 if results.interrupted else 0


def _measure(
    config: MBTConfig, setting: Setting, args: argparse.Namespace, why_dtype: str
) -> Results:
    """Ops, layer, ways, batch sizes; each gets its share of the time that is left."""
    from tqdm import tqdm

    # The profiler that counts memory would announce itself on stderr for every model.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    deadline = Deadline(args.seconds)
    with tqdm(desc="bench", unit="call", file=sys.stderr, leave=False) as bar:
        results = Results(Bench(setting, bar.update))
        bench = results.bench
        try:
            ops.measure_ops(bench, config, deadline.share(SHARES["ops"]))
            built = models.Models(config, setting)
            measure_layer(bench, built.of(setting.dtype), deadline.share(SHARES["layer"]))
            compared = models.measure_ways(
                bench, built, deadline.share(SHARES["ways"]), any_dtype=args.dtype == "auto"
            )
            _suggest(results, built, compared, why_dtype, args.batch_size, deadline)
        except KeyboardInterrupt:
            results.interrupted = True
        except RuntimeError as error:
            if machine.is_out_of_memory(error):
                raise InputError(
                    f"--batch-size must fit into memory: {setting.batch_size} clips do not fit on "
                    f"{setting.device}"
                ) from error
            raise
    return results


def _suggest(
    results: Results,
    built: models.Models,
    compared: list[ways.Way],
    why_dtype: str,
    sizes: list[int] | None,
    deadline: Deadline,
) -> None:
    """Choose a way, then look for the batch size that suits it."""
    bench = results.bench
    advice = suggest.Advisor(bench, built.config).advise(compared, why_dtype)
    results.suggestions, results.code = advice.suggestions, suggest.as_code(advice.way)
    following = models.doubling(bench.setting.batch_size) if sizes is None else sizes[1:]
    ended = models.measure_growth(bench, built, advice.way, following, deadline)
    results.suggestions.append(suggest.batch_size(bench, ended))
