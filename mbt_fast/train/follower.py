"""A run on the ranks that leave its folder alone."""

from mbt_fast.train.log import Record
from mbt_fast.train.run import Run


class Follower(Run):
    """A run on a rank that is not the first: it makes the same steps, and leaves the folder alone.

    It reads the folder of the first one, which must be on a file system that all hosts share.
    """

    writes = False

    def write_report(self) -> None:
        """The first rank does."""

    def _tidy(self) -> None: ...

    def _write(self, record: Record) -> None: ...

    def _write_checkpoint(self) -> None:
        self.state.take_part()

    def _say(self, text: str) -> None: ...

    def _point_to_best(self) -> None: ...
