"""Clips that could not be read: counted, listed, and at some number the end of the run."""

from collections.abc import Sequence
from pathlib import Path

from mbt_fast.data.manifest import Manifest
from mbt_fast.errors import RunError
from mbt_fast.train.dataset import Broken
from mbt_fast.train.log import Log

_SHOWN = 5


class BrokenClips(Log):
    """The list of clips that a run could not read, each once, with the reason.

    Args:
        path: The file of the list.
        step: Where the run starts.
        manifest: The training clips.
        limit: Share of them that may be broken.
        writes: As in ``Log``. Every process of a run is told of all broken clips.
    """

    def __init__(
        self, path: Path, step: int, manifest: Manifest, limit: float, writes: bool = True
    ) -> None:
        """Read the list of the steps before."""
        super().__init__(path, step, writes)
        self.manifest, self.limit = manifest, limit
        self._known = {record["index"] for record in self.records() if record["step"] <= step}

    def note(self, broken: Sequence[Broken], step: int) -> None:
        """Add the clips of a batch that were not met before.

        Raises:
            RunError: More than the limit are broken; names the list and the first ones.
            OSError: The list cannot be written.
        """
        for one in broken:
            if one.index not in self._known:
                self._known.add(one.index)
                entry = self.manifest[one.index]
                names = {"id": entry.id, "path": entry.path}
                self.append({"step": step, "index": one.index, **names, "error": one.error})
        if len(self._known) > self.limit * len(self.manifest):
            first = "; ".join(record["error"] for record in self.records()[:_SHOWN])
            raise RunError(
                f"data.broken_limit must be at least the share of clips that cannot be read, got "
                f"{self.limit:g}, and {len(self._known)} of {len(self.manifest)} cannot be read; "
                f"{self.path} lists them: {first}"
            )
