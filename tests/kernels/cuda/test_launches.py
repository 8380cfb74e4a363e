"""What the compiled host code asks the CUDA runtime for. No GPU is needed: the runtime is ours."""

import re
import shutil
import subprocess
import threading

import pytest
import torch
from attention_cases import Case, make_lengths, make_qkv
from hopper_calls import gradients_of, make_gradients

from mbt_fast import bottleneck_attention
from mbt_fast.ops import cuda

pytestmark = pytest.mark.native

CASE = Case(2, (300, 60), 4, 2, 64)
QUEUE = 0x5EED
# None of these waits for the device, allocates, or is refused while a graph is captured.
ASKED = {
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaSetDevice",
}


@pytest.fixture
def launches(kernels):
    """What is launched; nothing runs."""
    kernels.execute = lambda launch: None
    return kernels.launched


def forward(case=CASE, **options):
    qkv = make_qkv(case, torch.bfloat16)
    return bottleneck_attention(
        qkv, case.slots, lengths=make_lengths(case), backend="cuda", **options
    )


def backward(case=CASE, **options):
    qkv = make_qkv(case, torch.bfloat16)
    return gradients_of("cuda", qkv, case, make_gradients(case, torch.bfloat16), **options)


def names(launches):
    return [re.search(r"\d([a-z_]+)_kernel", launch.kernel)[1] for launch in launches]


@pytest.mark.parametrize("update", [None, "mean"])
def test_forward_launches_one_kernel_and_one_for_the_mean(launches, update):
    forward(update=update)
    assert names(launches) == ["bottleneck_attention_fwd", *(["slots_mean"] if update else [])]
    assert launches[0].block == (384, 1, 1)


@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_launches_three(launches, monkeypatch, deterministic):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    backward()
    third = "queries" if deterministic else "dq"
    of_backward = [f"bottleneck_attention_bwd_{name}" for name in ("delta", "keys", third)]
    assert names(launches)[1:] == of_backward
    keys = launches[2].kernel
    assert ("ELb0" if deterministic else "ELb1") in keys


def test_call_without_rows_launches_nothing(launches):
    forward(Case(2, (0, 0), 0, 2, 64))
    assert not launches


@pytest.mark.parametrize("multiprocessors", [1, 3, 1000])
def test_there_is_a_block_for_each_multiprocessor_but_no_more_than_items(kernels, multiprocessors):
    kernels.emulate(0, multiprocessors)
    kernels.execute = lambda launch: None
    forward()
    items = (3 + 1) * CASE.batch * CASE.heads
    assert kernels.launched[0].grid == (min(multiprocessors, items), 1, 1)


def test_every_launch_goes_to_the_stream_of_pytorch(launches, monkeypatch):
    """So a graph that is captured there holds them all."""
    monkeypatch.setattr(cuda, "_queue_of", lambda tensor: QUEUE)
    backward(update="mean")
    assert len(launches) == 5
    assert {launch.stream for launch in launches} == {QUEUE}


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_runtime_is_asked_for_nothing_that_a_capture_refuses(ptx_extension):
    units = sorted(ptx_extension.folder.glob("bottleneck_attention_*.o"))
    listed = subprocess.run(["nm", "-u", *units], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"\bcu(?:da)?[A-Z]\w+", listed)) == ASKED


def test_thread_that_has_launched_nothing_has_a_context_for_tensor_maps(launches):
    """Autograd's has not; the runtime refuses a tensor map where no device was made current."""
    errors = []

    def run():
        try:
            forward()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
    assert names(launches) == ["bottleneck_attention_fwd"]


def test_shared_memory_begins_at_a_multiple_of_1024(ptx_extension):
    """What the swizzle relies on: the one array asks for it, and nothing lies before it."""
    pipelines = [text for text in ptx_extension.texts.values() if "setmaxnreg" in text]
    assert len(pipelines) == 16
    for text in pipelines:
        (array,) = re.findall(r"\.shared .*", text)
        assert re.match(r"\.shared \.align 1024 \.b8 \S+\[\];", array)
