"""The CUDA kernels that the tests here run."""

import hopper
import nvcc_build
import pytest

from mbt_fast.ops import extension


@pytest.fixture(scope="session")
def hopper_module():
    """``mbt_fast._cuda``, or without a GPU its sources built for the emulation."""
    return extension.cuda_module() if hopper.ON_GPU else hopper.build()


@pytest.fixture(scope="session")
def ptx_extension():
    """``mbt_fast._cuda`` by nvcc, its PTX run by the executor."""
    hopper_ptx = pytest.importorskip("hopper_ptx", reason="the executor needs numpy")
    if hopper_ptx.WHY_NOT or hopper.ON_GPU:
        pytest.skip(hopper_ptx.WHY_NOT or "the kernels are tested on the GPU itself")
    return hopper_ptx.Extension(nvcc_build.build())


@pytest.fixture
def kernels(ptx_extension, monkeypatch):
    """The same in place of the built one; ``kernels.execute`` may be replaced."""
    hopper.install(ptx_extension, monkeypatch)
    ptx_extension.forget()
    monkeypatch.setattr(ptx_extension, "execute", ptx_extension.execute)  # to be restored
    return ptx_extension
