"""What a line of the log says of the steps before it."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


class MeanLosses:
    """Losses of a step, over all its parts. They stay on their device until they are read."""

    def __init__(self) -> None:
        """Begin without any."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(
        self,
        total: Tensor,
        by_modality: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        n_clips: int,
    ) -> None:
        """Add a part.

        Args:
            total: Its mean loss.
            by_modality: The mean over the clips that have a modality, or NaN.
            present: Bool ``[n_clips]``: which ones have it; all without an entry.
            n_clips: How many clips it has.
        """
        everything = torch.tensor(n_clips, device=total.device)
        self._add("loss", total.detach(), everything)
        for modality, value in by_modality.items():
            count = present[modality].sum() if modality in present else everything
            self._add(f"loss/{modality}", value, count)

    def add_mean(self, name: str, mean: Tensor) -> None:
        """Add a value that stands for all clips of this process, under a name of its own."""
        self._add(name, mean, torch.tensor(1, device=mean.device))

    def read(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> dict[str, float]:
        """``loss``, ``loss/<modality>``, NaN where no clip has it, and what else was added.

        Args:
            total: Adds up the sums and the counts of all processes.
        """
        sums = torch.stack(list(self._sums.values()))
        counts = torch.stack(list(self._counts.values())).to(sums)
        sums, counts = total(torch.stack([sums, counts]))
        return dict(zip(self._sums, (sums / counts).tolist(), strict=True))

    def _add(self, name: str, mean: Tensor, count: Tensor) -> None:
        value = torch.where(count > 0, mean, 0) * count
        self._sums[name] = self._sums.get(name, 0) + value
        self._counts[name] = self._counts.get(name, 0) + count


class Meter:
    """Clips per second, and the share of time in which the model waits for them.

    Both are over the steps since they were last read, without what lies between steps: checkpoints
    and scores. Of several processes the one that waits longest counts, for the others wait for it.

    Args:
        batch_size: Clips of a step, over all processes.
        highest: For each number the greatest of all processes.
    """

    def __init__(
        self, batch_size: int, highest: Callable[[Sequence[float]], Sequence[float]] = list
    ) -> None:
        """Begin without steps."""
        self._batch_size, self._highest = batch_size, highest
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._start = 0.0

    def start(self) -> None:
        """A step begins, before its batch is there."""
        self._start = time.perf_counter()

    def stop(self, waited: float) -> None:
        """A step ends, which waited so many seconds for its batch."""
        self._steps += 1
        self._seconds += time.perf_counter() - self._start
        self._waited += waited

    def read(self) -> dict[str, float]:
        """``clips_per_second`` and ``data_wait``; begins anew."""
        clips, seconds = self._steps * self._batch_size, self._seconds
        (wait,) = self._highest([self._waited / seconds])
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        return {"clips_per_second": clips / seconds, "data_wait": wait}
