"""Workers: what they share with the process of the model, and what they leave to it."""

import os
import signal
import time
from functools import partial
from multiprocessing import forkserver

import pytest
import torch
from torch.utils.data import Dataset

from mbt_fast.errors import RunError
from mbt_fast.train.loader import SIGNALS, Loader


class Numbers(Dataset):
    """Gives a number back, or does what it names."""

    def __init__(self, acts=None):
        self.acts = acts or {}

    def __getitem__(self, number):
        return self.acts.get(number, int)() or number


def slow():
    time.sleep(0.2)


def threads():
    return torch.get_num_threads()


def process():
    return os.getpid()


def signals():
    return all(signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS)


def lambda_in_a_batch():
    return lambda: None  # which no process can give to another


hang = partial(time.sleep, 60)
kill = partial(signal.raise_signal, signal.SIGKILL)


def load(acts, batches, workers=1, **options):
    return Loader(Numbers(acts), batches, list, workers=workers, **options)


def test_batches_come_in_order():
    batches = [[number, number + 1] for number in range(1, 12, 2)]
    loader = load({1: slow}, batches, workers=2)
    assert list(loader) == batches
    loader.close()


def test_a_worker_uses_one_thread_and_ignores_signals():
    loader = load({1: threads, 2: signals, 3: process}, [[1, 2, 3]])
    n_threads, ignored, pid = next(loader)
    loader.close()
    assert n_threads == 1
    assert ignored is True
    assert pid != os.getpid()


def test_a_signal_to_all_processes_leaves_workers_and_fork_server_alive():
    forkserver._forkserver._stop()  # one that another test started answers signals
    loader = load({1: process, 2: os.getppid}, [[1, 2], [3], [4], [5], [6], [7]])
    worker, server = next(loader)
    for number in SIGNALS:
        os.kill(worker, number)
        os.kill(server, number)
    assert list(loader) == [[3], [4], [5], [6], [7]]
    loader.close()
    assert list(load({}, [[1]])) == [[1]], "the server still starts workers"


def test_a_worker_that_dies_is_one_line():
    loader = load({2: kill}, [[1], [2], [3]])
    with pytest.raises(RunError, match=r"^a process that reads clips died: .*data\.workers") as got:
        list(loader)
    assert "\n" not in str(got.value)
    loader.close()


def test_a_batch_that_cannot_be_handed_over_is_one_line_and_no_hang():
    loader = load({2: lambda_in_a_batch}, [[1], [2], [3]])
    with pytest.raises(RunError, match=r"^a process that reads clips died: .*/dev/shm"):
        list(loader)
    loader.close()


def test_loading_does_not_move_torchs_own_generator():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert list(load({}, [[1]], workers=0)) == [[1]]
    assert torch.equal(torch.rand(1), expected)


def test_a_stop_is_seen_while_a_batch_does_not_come():
    asked = iter([False, False, True])
    loader = load({2: hang}, [[1], [2], [3]], stop=lambda: next(asked))
    assert list(loader) == [[1]]
    assert loader.stopped
    (worker,) = loader._workers
    loader.close()
    worker.join(5)
    assert worker.exitcode == -signal.SIGKILL


def test_a_batch_that_takes_long_comes():
    loader = load({2: partial(time.sleep, 2.5)}, [[1], [2], [3]])
    assert list(loader) == [[1], [2], [3]]
    assert not loader.stopped
    loader.close()


def test_waiting_is_measured():
    loader = load({2: slow}, [[1], [2]], workers=0)
    next(loader)
    first = loader.waited
    next(loader)
    assert loader.waited >= 0.2 > first
    loader.close()


def test_closing_early_ends_the_workers_at_once():
    loader = load({1: process}, [[1], *([number] for number in range(2, 100))])
    (worker,) = next(loader)
    start = time.perf_counter()
    loader.close()
    assert time.perf_counter() - start < 4
    deadline = time.perf_counter() + 5
    while os.path.exists(f"/proc/{worker}") and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")
