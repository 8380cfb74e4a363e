"""Triton on a GPU that is not there."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mbt_fast.ops import dispatch

pytest.importorskip("triton", reason="triton is not installed")
if dispatch.INTERPRET:
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("this process has a true driver", allow_module_level=True)

import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver as drivers
from triton.tools.tensor_descriptor import TensorDescriptor

from mbt_fast.testing import ptx
from mbt_fast.testing.ptx import driver


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, MASKED: tl.constexpr, TILE: tl.constexpr):
    number = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = number < n
    x = tl.load(x_ptr + number, mask=mask) if MASKED else tl.load(x_ptr + number)
    tl.store(out_ptr + number, x + tl.load(y_ptr + number, mask=mask), mask=mask)


@triton.jit
def double_kernel(x, out, ROWS: tl.constexpr):
    first = tl.program_id(0) * ROWS
    out.store([first, 0], 2 * x.load([first, 0]))


@triton.jit
def double_by_own_descriptors_kernel(x, out, rows, columns, TILE: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, columns], [columns, 1], [TILE, TILE])
    target = tl.make_tensor_descriptor(out, [rows, columns], [columns, 1], [TILE, TILE])
    target.store([0, 0], 2 * source.load([0, 0]))


def add(n=100, masked=True):
    """Inputs and output, which has NaN where nothing was written."""
    x, y = torch.randn(n), torch.randn(n)
    out = torch.full((n,), float("nan"))
    add_kernel[(triton.cdiv(n, 64),)](x, y, out, n, MASKED=masked, TILE=64)
    return x, y, out


@pytest.mark.parametrize("arch", [80, 90])
def test_a_kernel_computes_on_cpu_tensors(arch):
    with ptx.device(arch) as launches:
        x, y, out = add()
    assert torch.equal(out, x + y)
    (launch,) = launches
    assert launch.name == "add_kernel"
    assert (launch.shape.grid, launch.shape.block) == ((2, 1, 1), (128, 1, 1))
    assert launch.arguments["n"] == 100
    assert f".target sm_{arch}" in launch.ptx


@pytest.mark.parametrize("arch", [80, 90])
def test_tensor_descriptors_of_the_host_are_encoded(arch):
    x, out = torch.randn(50, 64), torch.zeros(50, 64)
    with ptx.device(arch) as launches:
        double_kernel[(2,)](*(TensorDescriptor.from_tensor(t, [32, 32]) for t in (x, out)), ROWS=32)
    assert torch.equal(out[:, :32], 2 * x[:, :32])
    assert not out[:, 32:].any()
    assert ("cp.async.bulk.tensor" in launches[0].ptx) == (arch == 90)


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_may_make_tensor_descriptors_in_memory_of_the_allocator(arch):
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8))
    x, out = torch.randn(20, 64), torch.zeros(20, 64)
    with ptx.device(arch) as launches:
        double_by_own_descriptors_kernel[(1,)](x, out, 20, 64, TILE=32)
    assert torch.equal(out[:, :32], 2 * x[:, :32])
    assert ("global_scratch" in launches[0].arguments) == (arch == 90)


def test_a_load_without_a_mask_is_an_error_of_the_launch():
    with ptx.device(), pytest.raises(ptx.PtxError, match="outside of all tensors") as raised:
        add(masked=False)
    assert raised.value.text.startswith("ld.global")
    assert raised.value.cta == (1, 0, 0)
    assert f"/{Path(__file__).name}:" in str(raised.value)  # checkouts share Triton's cache


def test_a_tensor_that_is_a_part_of_another_does_not_open_the_rest():
    whole, other = torch.zeros(128), torch.zeros(128)
    with ptx.device(), pytest.raises(ptx.PtxError, match="outside of all tensors"):
        add_kernel[(2,)](whole[:100], other, other, 100, MASKED=False, TILE=64)


def test_what_is_raised_instead_of_running_reaches_the_caller():
    def fail(launch):
        raise KeyError("mine")

    with ptx.device(run=fail) as launches, pytest.raises(KeyError, match="mine"):
        add()
    assert len(launches) == 1


def test_a_launch_may_be_recorded_only():
    with ptx.device(run=None) as launches:
        _, _, out = add()
    assert out.isnan().all()
    assert len(launches) == 1


def test_a_launch_may_run_other_ptx():
    def subtract(launch):
        assert "add.f32" in launch.ptx
        launch._replace(ptx=launch.ptx.replace("add.f32", "sub.f32")).run()

    with ptx.device(run=subtract):
        x, y, out = add()
    assert torch.equal(out, x - y)


def test_triton_has_its_driver_back_whatever_happens():
    def arch():
        return drivers.active.get_current_target().arch

    before = drivers._active
    with ptx.device():
        with pytest.raises(ZeroDivisionError), ptx.device(90):
            raise ZeroDivisionError(arch())
        assert arch() == 80
    assert drivers._active is before


def test_a_kernel_that_was_compiled_in_a_block_runs_in_the_next():
    with ptx.device() as first:
        add()
    with ptx.device() as second:
        x, y, out = add()
    assert torch.equal(out, x + y)
    assert first[0].function == second[0].function


@pytest.mark.parametrize("grid", [(1, 65536), (1, 1, 65536)], ids=str)
def test_a_grid_that_no_gpu_takes_is_refused(grid):
    x = torch.zeros(64)
    with ptx.device(run=None), pytest.raises(RuntimeError, match="invalid argument"):
        add_kernel[grid](x, x, x, 64, MASKED=True, TILE=64)


@pytest.mark.parametrize(("arch", "kilobytes"), [(80, 163), (90, 227)])
def test_shared_memory_is_that_of_the_architecture(arch, kilobytes):
    """Triton compares with it before it loads a kernel."""
    with ptx.device(arch, run=None):
        properties = drivers.active.utils.get_device_properties(arch)
    assert properties["max_shared_mem"] == kilobytes * 1024


def test_the_interpreter_is_no_compiler(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET must be unset"), ptx.device():
        pass


def test_without_a_compiler_the_error_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="set CC"):
        driver._compile(str(tmp_path), tmp_path / driver.NAME)


def test_a_process_that_has_a_true_driver_is_told_so(tmp_path):
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-shared", f"-Wl,-soname,{driver.NAME}", "-x", "c", "/dev/null", "-o"]
    library = tmp_path / driver.NAME
    subprocess.run([*command, str(library)], check=True)
    code = f"""
        import ctypes
        from mbt_fast.testing import ptx
        true = ctypes.CDLL({str(library)!r})
        try:
            with ptx.device():
                pass
        except RuntimeError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "a process that has not used CUDA" in done.stdout
