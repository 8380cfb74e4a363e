"""Signals that ask a run to stop: it saves at the next step."""

import signal
import threading
from types import FrameType
from typing import Any

from mbt_fast.train.loader import SIGNALS


class Stopping:
    """While it is entered, SIGTERM, SIGUSR1 and Ctrl-C are noted and change nothing else.

    A second Ctrl-C interrupts at once. Handlers are those of before when it is left. Outside of the
    main thread, where Python has no signals, nothing is noted.

    Attributes:
        signal: Name of the first signal, or ``None``.
    """

    def __init__(self) -> None:
        """Note nothing yet."""
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether the run is to stop."""
        return self.signal is not None

    def __enter__(self) -> "Stopping":
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def number(self) -> int:
        """That of the signal, or 0."""
        return signal.Signals[self.signal] if self.signal else 0

    def note(self, number: int) -> None:
        """Stop for a signal that another process of the run was sent; 0 is none."""
        if number:
            self.signal = self.signal or signal.Signals(number).name

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number).name
