"""What a run would be on a cluster, predicted: ``mbt-fast train --dry-run --world``."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mbt_fast.parallel.machine import Hosts
from mbt_fast.parallel.prediction import Step, deal, speed_limit
from mbt_fast.parallel.scaling import ENOUGH, MOST, Row, end_of_scaling
from mbt_fast.parallel.traffic import WIDE
from mbt_fast.profiling import tables
from mbt_fast.train import world_plot
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.parts import read_data
from mbt_fast.train.plan import census, duration, resolved, scaled
from mbt_fast.train.world import NAMES, WorldPlan, make_plan

LEFT_OUT = (
    "the host, which launches kernels, so one or two clips a rank will take longer; the loader; "
    "ranks slower than others; scores and checkpoints; what kernels of collectives take of a GPU"
)


def parts_of(
    config: TrainConfig, world: Hosts, machine: Path, plot: Path | None = None
) -> Iterator[str]:
    """The parts of the plan as text, each as soon as it is known.

    Without ``data.train`` the clips are left out.

    Args:
        config: Of the run.
        world: Hosts and ranks.
        machine: A machine file.
        plot: A PNG file to draw the curves to; ``None`` for no plot.

    Raises:
        InputError: What the run would refuse.
    """
    data = read_data(config) if config.data.train else None
    plan = make_plan(config, world, machine, data)
    yield resolved(plan.config)
    if data is not None:
        yield census(data)
    yield head(plan, None if data is None else len(data.train))
    yield ways(plan)
    yield scaling(plan)
    if plot is not None:
        world_plot.save(plan, plot)
    yield verdict(plan)
    yield assumptions(plan)


def head(plan: WorldPlan, n_clips: int | None) -> str:
    """The world, and how long the run takes."""
    world, train, machine = plan.world, plan.config.train, plan.predictor.machine
    lines = [
        f"predicted, nothing of it measured: {world} = {world.size:,} ranks, {machine.name}",
        f"batch:    {train.batch_size:,} clips a step, {plan.clips} a rank",
    ]
    step = plan.here().steps[train.parallel]
    if n_clips is not None and step is not None:
        steps = train.total_steps(n_clips)
        seconds = steps * step.seconds
        lines.append(f"the run:  {steps:,} steps, about {duration(seconds)} by {train.parallel}")
    if step is not None:
        rate = tables.significant(step.rate / world.size)
        lines.append(f"loader:   {rate} clips/s for each rank, or the model waits")
    return "\n".join(lines)


def ways(plan: WorldPlan) -> str:
    """A step of this world, by the way in which ranks share the work."""
    found, machine = plan.here(), plan.predictor.machine
    steps = [found.steps[way] for way in NAMES]
    rows: dict[str, list[str]] = {}

    def add(name: str, cell: Callable[[Step], str]) -> None:
        rows[name] = [tables.ABSENT if step is None else cell(step) for step in steps]

    streams = " : ".join(plan.predictor.work.streams)
    if streams:
        add(f"ranks, {streams}", lambda step: " : ".join(map(str, step.plan)) or "any")
    add("clips a rank", lambda step: f"{step.clips:,}")
    for kind in dict.fromkeys(kind for step in steps if step for kind in step.memory):
        add(kind, partial(_held, kind))
    add("memory", lambda step: _bytes(sum(step.memory.values())))
    add("memory, of the GPU's", lambda step: f"{sum(step.memory.values()) / machine.memory:.0%}")
    add("sent by a rank", lambda step: _bytes(step.wire.sent))
    add("sent, to other hosts", lambda step: _bytes(step.wire.leaving))
    add("compute", lambda step: _ms(step.forward + step.backward))
    add("update", lambda step: _ms(step.update))
    add("collectives", lambda step: _ms(step.wire.seconds))
    add("collectives, not hidden", lambda step: _ms(step.seen))
    add("step", lambda step: _ms(step.seconds))
    add("clips/s, all ranks", lambda step: tables.significant(step.rate))
    rows["efficiency"] = [_percent(found.efficiency[way]) for way in NAMES]
    lines = [(name, *cells) for name, cells in rows.items()]
    table = tables.text(("one step", *NAMES.values()), lines, left=("one step",))
    return "\n".join((table, *_absent(plan)))


def _absent(plan: WorldPlan) -> Iterator[str]:
    """Why a way is not in the table."""
    work, train = plan.predictor.work, plan.config.train
    if train.virtual_devices:
        yield (
            "fsdp and modality parallelism: not with train.virtual_devices, each of which clips "
            "its own gradient"
        )
    elif not work.streams:
        yield "modality parallelism: predicted for an MBT whose modalities meet in slots alone"
    elif plan.world.ranks % len(work.streams):
        yield f"modality parallelism: {len(work.streams)} must divide the ranks of a host"


def scaling(plan: WorldPlan) -> str:
    """Two curves: of the recipe's batch, and of a batch that grows with the world."""
    size, clips = plan.config.train.batch_size, plan.clips
    return "\n\n".join(
        (
            f"the batch of the recipe, {size:,} clips, whatever the world\n"
            + _curve(plan.fixed_batch()),
            f"{clips} clips a rank, so a larger batch on a larger world, which is another recipe\n"
            + _curve(plan.fixed_clips()),
        )
    )


def verdict(plan: WorldPlan) -> str:
    """Where data parallelism ends, and what modality parallelism changes."""
    lines = [
        f"batch of the recipe: {_end(plan.fixed_batch())}",
        f"{plan.clips} clips a rank: {_end(plan.fixed_clips())}",
    ]
    return "\n".join([*lines, *_modalities(plan)])


def _modalities(plan: WorldPlan) -> Iterator[str]:
    """What a rank for each modality gives; and a host's ranks, dealt out by compute."""
    work, ranks = plan.predictor.work, plan.world.ranks
    streams = list(work.streams.values())
    if not streams:
        return
    names, count = ", ".join(work.streams), len(streams)
    flops = [stream.both for stream in streams]
    shares = " : ".join(f"{cost / sum(flops):.0%}" for cost in flops)
    yield (
        f"modality parallelism: the compute of {names} is {shares}, so a rank for each is at most "
        f"{speed_limit(flops, [1] * count):.2f} times as fast as one rank for all"
    )
    if ranks > count:
        dealt = deal(streams, ranks)
        yield (
            f"modality parallelism: {' : '.join(map(str, dealt))} of {ranks} ranks are at most "
            f"{speed_limit(flops, dealt):.2f} times as fast, if each number divides the clips"
        )
    yield (
        "modality parallelism: goes on where ddp has one clip a rank; a rank holds one modality's "
        f"weights, and exchanges {_bytes(WIDE * work.slots)} a clip after each of {work.exchanges} "
        "layers, in both passes"
    )


def assumptions(plan: WorldPlan) -> str:
    """What the figures rest on."""
    m, dtype = plan.predictor.machine, plan.predictor.settings.dtype
    lines = [
        f"{dtype} at {m.efficiency[dtype]:.0%} of {scaled(m.peak[dtype], 'FLOP/s')}, "
        f"memory {scaled(m.memory, 'B')} at {scaled(m.memory_bandwidth, 'B/s')} ({plan.source})",
        f"{scaled(m.link, 'B/s')} and {_us(m.link_latency)} a hop inside a host; "
        f"{scaled(m.network, 'B/s')} for each rank and {_us(m.network_latency)} a hop between "
        f"hosts; {_us(m.start)} to start a collective",
        "sums of gradients go round rings over all adapters of a host, with the latency of a tree; "
        "gathers with that of a ring",
        f"collectives hide behind {m.overlap:.0%} of the pass beside which they run; slots behind "
        "nothing",
        "activations are what autograd keeps on this machine's backend, with no branch dropped",
        "efficiency is the speed over that of so many single ranks, above 100% where each updates "
        f"its share of the weights alone; scaling ends where it is below {ENOUGH:.0%}",
        f"left out: {LEFT_OUT}",
    ]
    return "\n".join(("assumed:", *(f"- {line}" for line in lines)))


def _curve(rows: list[Row]) -> str:
    headers = ["ranks", "hosts", "clips a rank"]
    for name in NAMES.values():
        headers += [name, "eff."]
    lines = []
    for each in rows:
        ddp = each.steps["ddp"]
        line = [f"{each.world.size:,}", str(each.world.hosts), f"{ddp.clips:,}" if ddp else "<1"]
        for way in NAMES:
            step = each.steps[way]
            line += [_ms(step.seconds) if step else tables.ABSENT, _percent(each.efficiency[way])]
        lines.append(line)
    return tables.text(headers, lines, left=())


def _end(rows: list[Row]) -> str:
    last, first = end_of_scaling(rows)
    if first is not None:
        return (
            f"ddp stops scaling at {first.world.size:,} ranks, where its efficiency is "
            f"{_percent(first.efficiency['ddp'])}"
        )
    if last is None or last.world.size * 2 > MOST:
        return f"ddp scales to {MOST:,} ranks and more"
    return (
        f"ddp ends at {last.world.size:,} ranks with an efficiency of "
        f"{_percent(last.efficiency['ddp'])}: more ranks do not divide the batch"
    )


def _held(kind: str, step: Step) -> str:
    return _bytes(step.memory.get(kind, 0))


def _bytes(count: float) -> str:
    return scaled(count, "B", 1024) if count else tables.ABSENT


def _ms(seconds: float) -> str:
    return f"{tables.significant(1e3 * seconds)} ms"


def _us(seconds: float) -> str:
    return f"{tables.significant(1e6 * seconds)} us"


def _percent(share: float | None) -> str:
    return tables.ABSENT if share is None else f"{share:.0%}"
