"""Hold a Triton kernel of your own to a float64 computation, by the error of eager PyTorch.

python examples/check_triton_kernel.py                    on a GPU
TRITON_INTERPRET=1 python examples/check_triton_kernel.py  on a CPU, in Triton's interpreter
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mbt_fast.testing import assert_close_to_exact

SHAPES = [(1, 16), (3, 100), (64, 128)]  # tails, too: a tile is a power of two


@triton.jit
def softmax_kernel(x_ptr, out_ptr, columns, SHIFT: tl.constexpr, TILE: tl.constexpr):
    """One program for each row; with ``SHIFT`` it takes the maximum off first."""
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, TILE)
    mask = column < columns
    x = tl.load(x_ptr + row + column, mask=mask, other=-float("inf")).to(tl.float32)
    if SHIFT:
        x -= tl.max(x, axis=0)
    numerator = tl.exp(x)
    out = numerator / tl.sum(numerator, axis=0)
    tl.store(out_ptr + row + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def softmax(x: Tensor, shift: bool = True) -> Tensor:
    """Softmax of every row of ``[rows, columns]``."""
    out = torch.empty_like(x)
    tile = triton.next_power_of_2(x.shape[1])
    softmax_kernel[(x.shape[0],)](x, out, x.shape[1], SHIFT=shift, TILE=tile)
    return out


def check(dtype: torch.dtype, shift: bool = True) -> None:
    """Compare on every shape, on scores as large as attention has them.

    Raises:
        AssertionError: The kernel's error is larger than rounding explains.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for shape in SHAPES:
        x = (30 * torch.randn(shape, device=device)).to(dtype)
        exact, eager = x.double().softmax(-1), x.softmax(-1)
        assert_close_to_exact(softmax(x, shift), eager, exact, name=f"softmax {shape} {dtype}")


def main() -> None:
    """Check the kernel, and that the check finds a wrong one."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        check(dtype)
    print("right: within the error of eager PyTorch")
    try:
        check(torch.float32, shift=False)
    except AssertionError as error:
        print(f"without the maximum: {str(error).splitlines()[0]}")
    else:
        raise SystemExit("the wrong kernel passed")


if __name__ == "__main__":
    main()
