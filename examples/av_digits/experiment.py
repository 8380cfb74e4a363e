"""Train and score every model of the comparison; a run that is finished is not made again.

python -m examples.av_digits.experiment --clips clips --out runs            # 3 seeds
python -m examples.av_digits.experiment --clips clips --out runs --short    # 2 models, 1 seed
python -m examples.av_digits.experiment --clips clips --out runs --where    # the other task
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from examples.av_digits import where
from examples.av_digits.data import SIZES, TASKS, write_all
from examples.av_digits.digits import SPLITS
from examples.av_digits.plan import MODELS, SEEDS, SHORT, Run, stages, where_stages
from examples.av_digits.record import gather
from examples.av_digits.scores import SCORES, Scorer
from examples.av_digits.table import block


def make(run: Run, clips: Path, runs: Path, scorer: Scorer, more: Sequence[str] = ()) -> None:
    """Train and score one run, unless that is done.

    Raises:
        SystemExit: ``mbt-fast train`` failed.
    """
    folder = run.folder(runs)
    if (folder / SCORES).exists():
        return
    start = time.monotonic()
    train(run.arguments(clips, runs, more), folder)
    line = scorer.score(run.task, folder)
    print(f"{time.monotonic() - start:6.1f} s  {folder}  {line}", flush=True)


def train(arguments: Sequence[str], folder: Path) -> None:
    """Run ``mbt-fast`` in a process of one thread, which goes on with what it began.

    Raises:
        SystemExit: It failed; what it printed is beside the folder of the run.
    """
    output = folder.with_suffix(".txt")
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mbt_fast", *arguments, "--out", str(folder)]
    with output.open("w") as file:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=one_thread)
    if done.returncode:
        raise SystemExit(f"{folder}: mbt-fast train failed, see {output}")


def main() -> None:
    """Run both stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--fsdd", type=Path, help="the Free Spoken Digit Dataset, if there are no clips yet")
    add("--clips", type=Path, required=True, help="folder of the clips, see data.py")
    add("--out", type=Path, required=True, help="folder of the runs")
    add("--short", action="store_true", help="bottleneck and late fusion with one seed")
    add("--where", action="store_true", help="the task where; its clips are of where.py")
    add("--models", nargs="+", choices=MODELS, help="only these")
    add("--seeds", type=int, nargs="+", help=f"default: {' '.join(map(str, SEEDS))}")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the last recipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips, runs = args.clips.resolve(), args.out.resolve()
    models = tuple(args.models or (SHORT if args.short else MODELS))
    seeds = tuple(args.seeds or (SEEDS[:1] if args.short else SEEDS))
    if args.fsdd and not (clips / TASKS[-1] / f"{SPLITS[-1]}.csv").exists():  # the last to come
        write_all(args.fsdd, clips, SIZES, seed=0, jobs=args.jobs)
    if args.fsdd and args.where and not (clips / "where" / f"{SPLITS[-1]}.csv").exists():
        where.write_all(args.fsdd, clips, seed=0, jobs=args.jobs)
    scorer = Scorer(clips)
    plan = where_stages(seeds) if args.where else stages(models, seeds)
    for number, stage in enumerate(plan):
        more = args.set if number else ()
        with ThreadPoolExecutor(args.jobs) as pool:
            waiting = [pool.submit(make, run, clips, runs, scorer, more) for run in stage]
            try:
                for done in waiting:
                    done.result()
            except BaseException:  # Ctrl-C too, which mbt-fast train answers by saving
                pool.shutdown(cancel_futures=True)
                raise
    if not args.where:
        print(block(gather(runs), []))


if __name__ == "__main__":
    main()
