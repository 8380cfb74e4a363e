"""What collectives take, in closed form."""

import pytest

from mbt_fast.errors import InputError
from mbt_fast.parallel.machine import Hosts, Machine, Wire, all_reduce, gather

PLAIN = Machine(
    name="round numbers",
    peak={"float32": 100.0},
    efficiency={"float32": 0.5},
    memory=1e3,
    memory_bandwidth=1e3,
    link=1000.0,
    link_latency=1.0,
    network=100.0,
    network_latency=10.0,
    start=0.5,
    overlap=0.5,
)


def test_world_is_read():
    assert Hosts.parse("16x8") == Hosts(16, 8)
    assert Hosts.parse("8") == Hosts(1, 8)
    assert str(Hosts.parse("2X4")) == "2x4"


@pytest.mark.parametrize("text", ["", "x", "0x8", "8x", "2x4x8", "-1x8", "1.5", "two", "9999999"])
def test_world_of_another_form_is_refused(text):
    with pytest.raises(InputError, match=r"--world must be HOSTSxRANKS, such as 16x8, got"):
        Hosts.parse(text)


def test_one_rank_sends_nothing():
    assert all_reduce(1e6, Hosts(1, 1), PLAIN) == gather(1e6, Hosts(1, 1), PLAIN) == Wire()


def test_ring_inside_a_host():
    """4 ranks: each byte is sent 2 * 3/4 times, or 3/4; 2 * 3 hops there and back, or 3."""
    assert all_reduce(1000, Hosts(1, 4), PLAIN) == Wire(1500, 0, 1.5 + 0.5 + 6)
    assert gather(1000, Hosts(1, 4), PLAIN) == Wire(750, 0, 0.75 + 0.5 + 3)


def test_rings_leave_a_host_by_all_its_adapters():
    """4 hosts of 2: a host's adapters have 200 bytes/s; what it sends is that of one rank."""
    wire = all_reduce(1600, Hosts(4, 2), PLAIN)
    assert wire == Wire(2800, 1400, 14 + 0.5 + 2 * 1 + 2 * 2 * 10)
    wire = gather(1600, Hosts(4, 2), PLAIN, calls=3)
    assert wire == Wire(1400, 700, 7 + 3 * (0.5 + 4 * 1 + 3 * 10))


def test_fast_network_is_no_faster_than_the_link():
    wire = all_reduce(1000, Hosts(2, 20), PLAIN)
    assert wire.seconds == pytest.approx(1.95 + 0.5 + 2 * 19 + 2 * 10)


def test_bytes_of_a_sum_are_those_that_the_ranks_of_a_ring_pass_on():
    """Counted: each rank passes a part on, n - 1 times while summing and n - 1 times after."""
    ranks, size = 8, 4096
    passed = sum(size // ranks for _ in range(2 * (ranks - 1)))
    assert all_reduce(size, Hosts(1, ranks), PLAIN).sent == passed
