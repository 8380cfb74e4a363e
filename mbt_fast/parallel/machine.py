"""Hosts, the links between their GPUs, and how long a collective takes on them, predicted."""

from dataclasses import dataclass
from math import ceil, log2

from mbt_fast.errors import InputError


@dataclass(frozen=True)
class Machine:
    """What is assumed of the machines of a run. Bytes, seconds, FLOP/s; of one direction.

    Args:
        name: For the reader.
        peak: FLOP/s of a GPU, by dtype.
        efficiency: Share of the peak that a whole step reaches, by dtype.
        memory: Of a GPU.
        memory_bandwidth: Of a GPU.
        link: Bandwidth of a GPU to the others of its host.
        link_latency: Of one hop inside a host.
        network: Bandwidth of the adapter that each GPU has to other hosts.
        network_latency: Of one hop between hosts.
        start: Latency of every collective.
        overlap: Share of the time of a pass behind which its collectives can hide.
    """

    name: str
    peak: dict[str, float]
    efficiency: dict[str, float]
    memory: float
    memory_bandwidth: float
    link: float
    link_latency: float
    network: float
    network_latency: float
    start: float
    overlap: float

    def seconds(self, flops: float, dtype: str) -> float:
        """Of so many FLOPs in that dtype."""
        return flops / (self.peak[dtype] * self.efficiency[dtype])


@dataclass(frozen=True)
class Hosts:
    """Ranks of a group: so many hosts, with so many ranks on each."""

    hosts: int
    ranks: int

    @property
    def size(self) -> int:
        """All ranks."""
        return self.hosts * self.ranks

    def __str__(self) -> str:
        """Such as ``16x8``."""
        return f"{self.hosts}x{self.ranks}"

    @classmethod
    def parse(cls, text: str) -> "Hosts":
        """Read ``16x8``: 16 hosts with 8 ranks each; ``8`` alone is one host.

        Raises:
            InputError: It is neither.
        """
        numbers = text.lower().split("x")
        if len(numbers) > 2 or not all(n.isdecimal() and 0 < int(n) < 10**6 for n in numbers):
            raise InputError(f"--world must be HOSTSxRANKS, such as 16x8, got {text!r}")
        return cls(*map(int, ["1", *numbers][-2:]))


@dataclass(frozen=True)
class Wire:
    """What collectives send and take.

    Args:
        sent: Bytes that a rank sends.
        leaving: Those of them that leave its host, in the mean over its ranks.
        seconds: Of all of them, one after the other.
    """

    sent: float = 0.0
    leaving: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Wire") -> "Wire":
        """Both, one after the other."""
        return Wire(
            self.sent + other.sent, self.leaving + other.leaving, self.seconds + other.seconds
        )


def all_reduce(size: float, group: Hosts, machine: Machine, calls: int = 1) -> Wire:
    """Sum ``size`` bytes over a group, in so many calls.

    A ring sends each byte 2 (n - 1) / n times. Latency is that of a tree: a chain through each
    host, and a binary tree over the hosts.
    """
    hops = group.ranks - 1, ceil(log2(group.hosts))
    return _collective(2, size, group, machine, calls, (2 * hops[0], 2 * hops[1]))


def gather(size: float, group: Hosts, machine: Machine, calls: int = 1) -> Wire:
    """Gather ``size`` bytes on each rank of a group, or sum them and leave each its part.

    A ring sends each byte (n - 1) / n times, in n - 1 hops.
    """
    hops = group.size - group.hosts, group.hosts - 1
    return _collective(1, size, group, machine, calls, hops)


def _collective(
    times: int, size: float, group: Hosts, machine: Machine, calls: int, hops: tuple[int, int]
) -> Wire:
    if group.size == 1:
        return Wire()
    sent = times * (group.size - 1) / group.size * size
    several = group.hosts > 1
    # Rings side by side leave a host by the adapter of each of its ranks.
    bandwidth = min(machine.link, group.ranks * machine.network) if several else machine.link
    latency = machine.start + hops[0] * machine.link_latency + hops[1] * machine.network_latency
    leaving = sent / group.ranks if several else 0.0
    return Wire(sent, leaving, sent / bandwidth + calls * latency)
