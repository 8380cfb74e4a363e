"""Run a Triton kernel on a laptop: compiled for a GPU that is not there, executed on the CPU.

python examples/run_triton_without_gpu.py

Unlike Triton's interpreter this runs what the compiler made: bfloat16, the shared memory, the
barriers and the tensor core instructions of an architecture. It finds what a GPU would not tell.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.testing import assert_close_to_exact, ptx

SHAPES = [(1, 16), (3, 100)]


@triton.jit
def softmax_kernel(x_ptr, out_ptr, columns, MASKED: tl.constexpr, TILE: tl.constexpr):
    """One program for each row; without ``MASKED`` it reads what lies behind the row."""
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, TILE)
    inside = column < columns
    if MASKED:
        x = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    else:  # which changes no result: the next line drops it
        x = tl.load(x_ptr + row + column).to(tl.float32)
    x = tl.where(inside, x, -float("inf"))
    numerator = tl.exp(x - tl.max(x, axis=0))
    out = numerator / tl.sum(numerator, axis=0)
    tl.store(out_ptr + row + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def softmax(x: Tensor, masked: bool = True) -> Tensor:
    """Softmax of every row of ``[rows, columns]``."""
    out = torch.full_like(x, float("nan"))
    tile = triton.next_power_of_2(x.shape[1])
    softmax_kernel[(x.shape[0],)](x, out, x.shape[1], MASKED=masked, TILE=tile)
    return out


def check(dtype: torch.dtype) -> None:
    """Compare with float64, by the error of eager PyTorch.

    Raises:
        AssertionError: The kernel's error is larger than rounding explains.
    """
    for shape in SHAPES:
        x = torch.randn(shape).to(dtype)
        exact, eager = x.double().softmax(-1), x.softmax(-1)
        assert_close_to_exact(softmax(x), eager, exact, name=f"softmax {shape} {dtype}")


def main() -> None:
    """Check the kernel on two architectures, and that a wrong one is found."""
    torch.manual_seed(0)
    for arch in (80, 90):
        with ptx.device(arch) as launches:
            for dtype in (torch.float32, torch.bfloat16):
                check(dtype)
        print(f"sm_{arch}: {len(launches)} launches, within the error of eager PyTorch")
    with ptx.device():
        try:
            softmax(torch.randn(3, 100), masked=False)
        except ptx.PtxError as error:
            print(f"without the mask: {error}")
        else:
            raise SystemExit("the wrong kernel passed")


if __name__ == "__main__":
    main()
