"""One op stays in few places: what somebody has to read, or change, for it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("mbt_fast/ops", "kernels", "csrc")
MANY_OPS = ("csrc/cpu/simd", "csrc/cuda/hopper", "csrc/cuda/emulated")  # instructions, not ops
OPS = ("bottleneck_attention", "add_layer_norm", "residual_add", "bias_gelu", "linear")


def files_of(op):
    """Sources whose name begins with that of an op, such as ``<op>_fwd.cuh``."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.[chp]*")):
            name = path.relative_to(ROOT).as_posix()
            if path.name.startswith(op) and not name.startswith(MANY_OPS):
                yield name


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_at_most_ten_sources(op):
    files = list(files_of(op))
    assert 3 <= len(files) <= 10, "\n".join(files)


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_python_file_in_the_library(op):
    files = [name for name in files_of(op) if name.startswith("mbt_fast/ops")]
    assert len(files) == 1, files
