"""What a line of the log says of the steps before it."""

import time
from collections.abc import Mapping

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

    def read(self) -> dict[str, float]:
        """``loss``, and ``loss/<modality>``: NaN where no clip has it."""
        means = [self._sums[name] / self._counts[name] for name in self._sums]
        return dict(zip(self._sums, torch.stack(means).tolist(), strict=True))

    def _add(self, name: str, mean: Tensor, count: Tensor) -> None:
        value = torch.where(count > 0, mean, 0) * count
        self._sums[name] = self._sums.get(name, 0) + value
        self._counts[name] = self._counts.get(name, 0) + count


class Meter:
    """Clips per second, and the share of time in which the model waits for them.

    Both are over the steps since they were last read, without what lies between steps: checkpoints
    and scores.

    Args:
        batch_size: Clips of a step.
    """

    def __init__(self, batch_size: int) -> None:
        """Begin without steps."""
        self._batch_size = batch_size
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
        clips, seconds, waited = self._steps * self._batch_size, self._seconds, self._waited
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        return {"clips_per_second": clips / seconds, "data_wait": waited / seconds}
