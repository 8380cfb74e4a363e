"""A group that is started again finds its own processes, and not those of the start before."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from mbt_fast.errors import RunError
from mbt_fast.parallel import joining

WORLD = 3


@pytest.fixture
def server():
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def client(server):
    return dist.TCPStore("localhost", server.port, is_master=False)


def start(server, ranks=range(WORLD)):
    """The stores of some processes that start together."""
    with ThreadPoolExecutor(WORLD) as pool:
        own = pool.map(lambda rank: joining.own_part(client(server), rank, WORLD), ranks)
        return list(own)


def test_what_an_earlier_start_wrote_is_not_seen(server):
    for _ in range(3):
        stores = start(server)
        assert not any(store.check(["address"]) for store in stores)
        stores[1].set("address", "here")
        assert [store.get("address") for store in stores] == [b"here"] * WORLD


def test_a_question_of_a_process_that_is_gone_is_no_hindrance(server):
    stale = dist.PrefixStore("mbt_fast", client(server))
    for rank in range(1, WORLD):
        stale.set(f"asks/{rank}", "of one that was killed before it had an answer")
    stores = start(server)
    stores[0].set("address", "here")
    assert [store.get("address") for store in stores] == [b"here"] * WORLD


def test_a_process_that_does_not_come_is_named(server, monkeypatch):
    monkeypatch.setattr(joining, "_LONGEST", 0.3)
    with pytest.raises(RunError, match=r"all of 3 ranks must start, got none of \[2\]"):
        start(server, [0, 1])
