"""``mbt-fast`` in which rank 1 kills itself in step 4, unless torchrun has restarted it."""

import os
import signal
import sys

from mbt_fast.cli.main import main
from mbt_fast.train import report
from mbt_fast.train.loop import Loop

step = Loop._step


def killed(self, number, batch):
    if number == 3 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, batch)


Loop._step = killed
report.write = lambda *_: None
sys.exit(main())
