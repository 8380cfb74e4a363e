"""What a step would take on a world of GPUs: compute, memory and wire. Nothing here is measured.

A step is a forward pass, a backward pass and an update. Collectives run beside a pass and hide
behind a share of it; what is left of them is seen. Left out: the host, which launches kernels, the
loader, ranks that are slower than others, and that a GPU works less well on few clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from mbt_fast.parallel.machine import Hosts, Machine, Wire, all_reduce, gather
from mbt_fast.parallel.traffic import WIDE
from mbt_fast.parallel.work import WIDTHS, Settings, Stream, Work

BUCKET = 25 * 2**20  # bytes that DistributedDataParallel sums at a time


@dataclass(frozen=True)
class Step:
    """One step on one rank, the slowest if they differ.

    Args:
        ranks: Of the world.
        batch_size: Clips of the step, over all ranks.
        clips: Of this rank.
        memory: Bytes by what they hold.
        forward: Seconds of compute.
        backward: Seconds of compute.
        update: Seconds.
        wire: All collectives.
        seen: Seconds of them that nothing hides.
        plan: Ranks of each modality in a group that computes a clip between them; empty if each
            rank computes whole clips.
    """

    ranks: int
    batch_size: int
    clips: int
    memory: Mapping[str, float]
    forward: float
    backward: float
    update: float
    wire: Wire
    seen: float
    plan: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.forward + self.backward + self.update + self.seen

    @property
    def rate(self) -> float:
        """Clips a second, of all ranks."""
        return self.batch_size / self.seconds


@dataclass(frozen=True)
class Predictor:
    """Predicts steps of one model by one recipe on one kind of machine.

    Each way returns ``None`` where it cannot be: ranks or clips do not divide, or the model does
    not allow it.

    Args:
        work: The model.
        settings: The recipe.
        machine: The hosts.
    """

    work: Work
    settings: Settings
    machine: Machine

    def alone(self, batch_size: int) -> Step:
        """One rank computes the whole batch."""
        return self._ddp(Hosts(1, 1), batch_size, batch_size)

    def ddp(self, world: Hosts, batch_size: int) -> Step | None:
        """Every rank holds all weights, and gradients are summed."""
        clips = self.settings.share(batch_size, world.size)
        return self._ddp(world, batch_size, clips) if clips else None

    def fsdp(self, world: Hosts, batch_size: int) -> Step | None:
        """Every rank holds a share of each weight, and gathers a layer when it is computed.

        Each micro-batch gathers in both passes, but for the root, which it gathers once; gradients
        are summed after the last.
        """
        clips = self.settings.share(batch_size, world.size)
        if not clips or self.settings.virtual_devices:  # no rank has a gradient to clip
            return None
        work, times = self.work, self._times(clips)
        width, units = WIDTHS[self.settings.dtype], len(work.units)
        forward, backward = self._passes(work, clips)
        gathered = gather(width * work.parameters, world, self.machine, units)
        again = gather(width * (work.parameters - work.units[-1]), world, self.machine, units - 1)
        summed = gather(WIDE * work.parameters, world, self.machine, units)
        first, last = gathered.seconds / units, summed.seconds / units  # nothing runs beside them
        beside_forward, beside_backward = (
            self.machine.overlap * seconds / times for seconds in (forward, backward)
        )
        seen = times * max(gathered.seconds - beside_forward, first)
        seen += (times - 1) * max(again.seconds - beside_backward, 0)
        seen += max(again.seconds + summed.seconds - beside_backward, last)
        share = work.parameters / world.size
        memory = self._memory(work.shares.get(world.size, share))
        memory["gathered"] = 2 * (width + WIDE) * max(work.units)  # the one in use and the next
        if times > 1:
            memory["gathered"] += WIDE * work.parameters  # gradients that are not summed yet
        memory |= self._activations(work.kept, 0, clips)
        wire = sum([gathered, again] * times, summed)
        update = self._update(share)
        return Step(world.size, batch_size, clips, memory, forward, backward, update, wire, seen)

    def modality(self, world: Hosts, batch_size: int) -> Step | None:
        """Groups of ranks of a host compute a clip between them; gradients are summed over groups.

        Of all numbers of ranks that a group can have, the fastest.
        """
        streams = self.work.streams
        if not streams or self.settings.virtual_devices:
            return None
        sizes = [n for n in range(len(streams), world.ranks + 1) if world.ranks % n == 0]
        plans = (deal(list(streams.values()), size) for size in sizes)
        found = (self._group(plan, world, batch_size) for plan in plans)
        return min(filter(None, found), key=lambda step: step.seconds, default=None)

    def _group(self, plan: tuple[int, ...], world: Hosts, batch_size: int) -> Step | None:
        groups = Hosts(world.hosts, world.ranks // sum(plan))
        clips, rest = divmod(batch_size, groups.size)
        if rest or any(clips % ranks for ranks in plan):
            return None
        pairs = zip(plan, self.work.streams.values(), strict=True)
        steps = [self._stream(s, ranks, plan, groups, batch_size) for ranks, s in pairs]
        return max(steps, key=lambda step: step.seconds)

    def _stream(
        self, stream: Stream, replicas: int, plan: tuple[int, ...], groups: Hosts, batch_size: int
    ) -> Step:
        """A rank of a modality that has ``replicas`` ranks in each group."""
        machine, inside = self.machine, Hosts(1, sum(plan))
        in_group = batch_size // groups.size
        clips = in_group // replicas
        forward, backward = self._passes(stream, clips)
        held = stream.parameters + self.work.shared
        calls = 2 * self._times(clips) * self.work.exchanges  # in both passes, which wait for them
        size = 2 * self.work.exchanges * WIDE * self.work.slots * in_group
        hidden = self._summed(held, groups)
        waited = (
            all_reduce(size, inside, machine, calls)
            + all_reduce(WIDE * stream.parameters, Hosts(1, replicas), machine)
            + all_reduce(WIDE * self.work.shared, inside, machine)
        )
        fixed = round(self.work.fixed * stream.parameters / self.work.parameters)
        return Step(
            groups.size * sum(plan),
            batch_size,
            clips,
            self._memory(held) | self._activations(stream.kept, fixed, clips),
            forward,
            backward,
            self._update(held),
            hidden + waited,
            waited.seconds + self._seen(hidden, held, backward, clips),
            plan,
        )

    def _ddp(self, world: Hosts, batch_size: int, clips: int) -> Step:
        work = self.work
        forward, backward = self._passes(work, clips)
        wire = self._summed(work.parameters, world)
        memory = self._memory(work.parameters, self.settings.groups(clips))
        if world.size > 1 and self.settings.virtual_devices:
            memory["buckets"] = memory["weights"]  # DDP's, elsewhere the gradients themselves
        memory |= self._activations(work.kept, work.fixed, clips)
        return Step(
            world.size,
            batch_size,
            clips,
            memory,
            forward,
            backward,
            self._update(work.parameters),
            wire,
            self._seen(wire, work.parameters, backward, clips),
        )

    def _times(self, clips: int) -> int:
        """Micro-batches of a rank."""
        return ceil(clips / self.settings.at_a_time(clips))

    def _passes(self, work: Work | Stream, clips: int) -> tuple[float, float]:
        first, both = (
            self.machine.seconds(clips * flops, self.settings.dtype)
            for flops in (work.forward, work.both)
        )
        return first, both - first

    def _summed(self, parameters: float, group: Hosts) -> Wire:
        size = WIDE * parameters
        return all_reduce(size, group, self.machine, ceil(size / BUCKET))

    def _seen(self, wire: Wire, parameters: float, backward: float, clips: int) -> float:
        """What a backward pass does not hide of sums of gradients, at least the last one.

        Only that of the last micro-batch can; and none where a group is clipped before the sum.
        """
        share = 0.0 if self.settings.virtual_devices else self.settings.at_a_time(clips) / clips
        last = wire.seconds / ceil(WIDE * parameters / BUCKET)
        return max(wire.seconds - self.machine.overlap * share * backward, last)

    def _update(self, parameters: float) -> float:
        return WIDE * self.settings.passes * parameters / self.machine.memory_bandwidth

    def _memory(self, parameters: float, groups: int = 1) -> dict[str, float]:
        weights = WIDE * parameters
        gradients = weights * (2 if groups > 1 else 1)  # of a group, and their sum
        held = {"weights": weights, "gradients": gradients}
        held["optimizer"] = self.settings.states * weights
        return held | ({"average": weights} if self.settings.averaged else {})

    def _activations(self, kept: int, fixed: int, clips: int) -> dict[str, float]:
        return {"activations": fixed + kept * self.settings.at_a_time(clips)} if kept else {}


def deal(streams: Sequence[Stream], ranks: int) -> tuple[int, ...]:
    """Ranks of each modality: one at least, the others to who has most to do."""
    dealt = [1] * len(streams)
    for _ in range(ranks - len(streams)):
        busiest = max(range(len(streams)), key=lambda index: streams[index].both / dealt[index])
        dealt[busiest] += 1
    return tuple(dealt)


def speed_limit(flops: Sequence[float], dealt: Sequence[int]) -> float:
    """How much faster so many ranks of each modality can be than one rank for all.

    Args:
        flops: Of each modality.
        dealt: Ranks of each.
    """
    return sum(flops) / max(cost / ranks for cost, ranks in zip(flops, dealt, strict=True))
