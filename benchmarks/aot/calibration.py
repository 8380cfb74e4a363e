"""The model against published speeds on an H100 SXM.

- A plain attention forward, in the way of Triton's tutorial, is compiled here. It stands for what
  the FlashAttention-3 repository publishes as "Triton", which another version of Triton made, with
  tiles that are not published. Its exponentials wait for their products.
- FlashAttention-3's forward is not compiled. Its tile needs as many cycles of the tensor cores as
  of the special function units, and these limit it; it computes both side by side.

Nothing published fits a backward that is compiled here: predictions of backwards are not checked.
"""

from math import ceil, prod
from statistics import linear_regression
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.aot.model import SUSTAINED, Fit, Problem, Walk, tflops
from benchmarks.aot.turns import Turn
from mbt_fast.kernels.table import Tiles

# TFLOP/s by length, forward, float16, no causal mask, 32 heads, 16384 tokens; the figure for head
# dimension 64 in https://github.com/Dao-AILab/flash-attention.
TUTORIAL = {512: 340.0, 1024: 382.0, 2048: 396.0, 4096: 400.0, 8192: 401.0, 16384: 403.0}
FLASH_3 = {512: 333.0, 1024: 392.0, 2048: 460.0, 4096: 476.0, 8192: 496.0, 16384: 497.0}
FLASH_3_TILE = (192, 128)
HEADS, HEAD_DIM, ARCH = 32, 64, 90
TILES = Tiles(128, 64, 8, 3)


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, rows, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one head."""
    first = tl.program_id(1).to(tl.int64) * rows * D
    channel = tl.arange(0, D)[None, :]
    query = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None] * D + channel
    key = tl.arange(0, BLOCK_N)[:, None] * D + channel
    q = tl.load(q_ptr + first + query)
    out = tl.zeros([BLOCK_M, D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for start in range(0, rows, BLOCK_N):
        k = tl.load(k_ptr + first + start * D + key)
        s = tl.dot(q, tl.trans(k))
        highest = tl.maximum(top, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - highest[:, None])
        alpha = tl.exp2(top - highest)
        v = tl.load(v_ptr + first + start * D + key)
        out = tl.dot(p.to(v.dtype), v, out * alpha[:, None])
        total, top = total * alpha + tl.sum(p, 1), highest
    tl.store(out_ptr + first + query, (out / total[:, None]).to(tl.float16))


def compile_kernel(tiles: Tiles = TILES) -> Any:
    """As the tutorial is compiled for an H100."""
    kernel = attention_kernel
    constants = {"D": HEAD_DIM, "BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n}
    types = {"rows": "i32", "scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*fp16") for name in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(5)}
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", ARCH, 32), options=options)


def relative_errors(published: dict[int, float], walk: Walk) -> dict[int, float]:
    """Of the model, by length."""
    return {
        rows: tflops([walk], 2, Problem(rows, HEADS * 16384 // rows, HEAD_DIM)) / speed - 1
        for rows, speed in published.items()
    }


def fit(published: dict[int, float], walk: Walk) -> Fit:
    """The least squares of ``1 / speed`` over ``1 / rows``; speeds without padding of tiles.

    ``speed = top / (1 + start / rows)``, and ``top`` says how long a turn takes.
    """
    spent = {rows: speed / _used(rows, walk) for rows, speed in published.items()}
    slope, rest = linear_regression([1 / n for n in spent], [1 / speed for speed in spent.values()])
    cycles = SUSTAINED * walk.turn.tensor * rest
    turn = walk.turn
    threads, products = max(turn.issue, turn.exponentials), max(turn.tensor, turn.shared)
    unhidden = (cycles - max(threads, products)) / min(threads, products)
    return Fit(round(unhidden, 3), round(slope / rest))


def _used(rows: int, walk: Walk) -> float:
    """The share of computed scores that is of use."""
    return rows**2 / prod(ceil(rows / block) * block for block in (walk.block_m, walk.block_n))


def flash_3() -> Walk:
    """The forward of FlashAttention-3, by arithmetic."""
    block_m, block_n = FLASH_3_TILE
    cycles = block_m * block_n // 16
    turn = Turn(0, 0, tensor=cycles, exponentials=cycles, shared=0, hidden=1.0)
    return Walk(turn, block_m, block_n, groups=3)


def tutorial(turn: Turn) -> Walk:
    """The tutorial's forward, with a turn of what Triton compiled; two blocks fit."""
    return Walk(turn, TILES.block_m, TILES.block_n, groups=2 * TILES.num_warps // 4)
