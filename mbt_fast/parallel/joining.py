"""Join after a restart: the store may be older than the group.

torchrun keeps one store for all restarts of a group, and nothing in it tells them apart
(pytorch/pytorch#135712). Who reads where another process listens, before that one has written it
anew, connects to a process that is gone. The number of restarts does not help: each host counts its
own. So rank 0 makes up a name, and tells it to those who ask with a name that they made up.
"""

import os
import time
from typing import Any
from uuid import uuid4

import torch.distributed as dist

from mbt_fast.errors import RunError

_PAUSE = 0.05  # seconds
_LONGEST = 1800.0  # seconds, as long as torch waits


def join(backend: str, **options: Any) -> None:
    """Initialise the group of all processes from the environment, as torchrun sets it.

    Args:
        backend: Such as ``"gloo"``.
        **options: Of ``init_process_group``.

    Raises:
        RunError: A process does not come.
    """
    store, rank, world = next(dist.rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = own_part(store, rank, world)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, **options)


def own_part(store: dist.Store, rank: int, world: int) -> dist.Store:
    """The part of a store of which only the processes of this start know; all must call this.

    Raises:
        RunError: A process does not come within half an hour.
    """
    store = dist.PrefixStore("mbt_fast", store)
    name = _asked(store, rank) if rank else _told(store, world)
    return dist.PrefixStore(name, store)


def _asked(store: dist.Store, rank: int) -> str:
    question = uuid4().hex
    store.set(_ask(rank), question)
    name = store.get(question).decode()  # waits
    store.set(_known(name, rank), "")
    return name


def _told(store: dist.Store, world: int) -> str:
    """Answer until all have the name: a question may be that of a process that is gone."""
    name, missing = uuid4().hex, list(range(1, world))
    deadline = time.monotonic() + _LONGEST
    while missing:
        for rank in missing:
            if store.check([_ask(rank)]):
                store.set(store.get(_ask(rank)).decode(), name)
        time.sleep(_PAUSE)
        missing = [rank for rank in missing if not store.check([_known(name, rank)])]
        if time.monotonic() > deadline:
            raise RunError(f"all of {world} ranks must start, got none of {missing}")
    return name


def _ask(rank: int) -> str:
    return f"asks/{rank}"


def _known(name: str, rank: int) -> str:
    return f"{name}/known/{rank}"
