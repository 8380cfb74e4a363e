"""Call a function for every row of a manifest, in several processes."""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset

from mbt_fast.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """What has a length and is indexed from 0."""

    def __len__(self) -> int:
        """Number of items."""

    def __getitem__(self, index: int, /) -> T_co:
        """One item."""


@dataclass(frozen=True)
class _Raised:
    """An exception on its way from a worker."""

    error: Exception


class _Calls(Dataset["R | _Raised"], Generic[T, R]):
    """The results of a function, each computed when it is asked for."""

    def __init__(self, function: Callable[[T], R], items: Items[T]) -> None:
        self._function = function
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> R | _Raised:
        try:
            return self._function(self._items[index])
        except (InputError, OSError) as error:  # DataLoader would make a traceback of it
            return _Raised(error)


def call_for_each(function: Callable[[T], R], items: Items[T], workers: int) -> Iterator[R]:
    """The results in order, each as soon as it is there.

    Args:
        function: It can be pickled.
        items: Such as a manifest; it is shared with the workers, not copied.
        workers: Number of processes; 0 calls the function in this one.

    Raises:
        InputError: A worker process died, or the function raised it; ``OSError`` likewise.
    """
    calls = _Calls(function, items)
    # Not fork: a child of a process with threads may hang in FFmpeg or torch.
    context = None
    if workers:
        methods = multiprocessing.get_all_start_methods()
        context = "forkserver" if "forkserver" in methods else "spawn"
    loader = DataLoader(
        calls,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=_unchanged,
    )
    try:
        for result in loader:
            if isinstance(result, _Raised):
                raise result.error
            yield result
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise InputError(f"a worker process died ({error}); --workers 0 shows where") from error


def _unchanged(item: R) -> R:
    return item
