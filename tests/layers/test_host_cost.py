"""What a fusion layer costs the host, counted: it is what small batches on a GPU wait for."""

import sys
from pathlib import Path

import pytest
import torch
from backends import needs_cpu_kernels
from model_cases import tiny

import mbt_fast

PACKAGE = str(Path(mbt_fast.__file__).parent)
MOST_CALLS = 185  # 65 of them for four Linears


def python_calls(run):
    """Calls of functions of ours; of comprehensions and generators, which are no jump, none."""
    seen = []

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            seen.append(code.co_name)

    run()  # what is looked up once
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return len(seen)


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_layer_on_kernels_takes_few_python_calls(dtype):
    model = tiny().to(dtype).set_backend("cpu")
    streams = {m: torch.randn(1, 20, 64, dtype=dtype) for m in model.config.modalities}
    calls = python_calls(lambda: model.layers[2](streams, {}, n_slots=4))
    assert 0 < calls <= MOST_CALLS
