"""The CUDA kernels that the tests here run."""

import hopper
import pytest

from mbt_fast.ops import extension


@pytest.fixture(scope="session")
def hopper_module():
    """``mbt_fast._cuda``, or without a GPU its sources built for the emulation."""
    return extension.cuda_module() if hopper.ON_GPU else hopper.build()
