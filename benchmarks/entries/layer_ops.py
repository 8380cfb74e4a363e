"""The layer around attention against torch's own functions, forward and backward, on the CPU.

The shapes are those of MBT-B on one clip of eight seconds: 1573 and 405 rows, 768 channels, 3072 in
the MLP. Both sides return the same results, with the host's cost of a call, without autograd's.
``dispatch`` takes from this record where ``auto`` uses the C++ kernels.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from benchmarks.case import Case, Run, Scope, Variant
from mbt_fast import functional, ops

SLOTS, EPS = 4, 1e-6
Pair = tuple[Run, Run]  # torch's, ours
Pairs = Callable[[], Mapping[tuple[str, str], Pair]]  # by name and mode
GELUS = ("gelu tanh", "gelu tanh with bias", "gelu none", "gelu none with bias")
NORMS = ("layer_norm", "add, layer_norm", "add, share slots, layer_norm")
BOTH = ("forward", "backward")
aten = torch.ops.aten


def cases(scope: Scope) -> Iterator[Case]:
    """Two threads before one, the dtypes of models before float16."""
    rows, channels, hidden = ((9, 5), 16, 24) if scope.smoke else ((1573, 405), 768, 3072)
    for threads in (2,) if scope.smoke else (2, 1):
        for dtype in (torch.bfloat16, torch.float32, torch.float16):
            shape = {"rows": [sum(rows)], "channels": hidden}
            gelus = partial(gelu_pairs, sum(rows), hidden, dtype)
            for name in GELUS:
                yield from (_case(name, mode, shape, dtype, gelus, threads) for mode in BOTH)
            shape = {"rows": list(rows), "channels": channels}
            norms = partial(norm_pairs, rows, channels, dtype)
            for name in NORMS:
                modes = BOTH if name != NORMS[-1] else BOTH[:1]
                yield from (_case(name, mode, shape, dtype, norms, threads) for mode in modes)


def _case(
    name: str, mode: str, shape: dict[str, Any], dtype: torch.dtype, pairs: Pairs, threads: int
) -> Case:
    return Case(
        name=name,
        mode=mode,
        shape=shape,
        dtype=dtype,
        variants=partial(variants, pairs, name, mode),
        baseline="torch",
        threads=threads,
    )


def variants(pairs: Pairs, name: str, mode: str) -> Mapping[str, Variant]:
    """Torch's functions, and ours."""
    stock, kernel = (torch.no_grad()(run) for run in pairs()[name, mode])
    return {"torch": Variant(run=stock), "ours, cpu": Variant(run=kernel)}


def gelu_pairs(rows: int, channels: int, dtype: torch.dtype) -> Mapping[tuple[str, str], Pair]:
    """GELU of ``[rows, channels]``, both approximations, with and without bias."""
    x, dout = (torch.randn(rows, channels).to(dtype) for _ in range(2))
    bias = torch.randn(channels).to(dtype)
    pairs: dict[tuple[str, str], Pair] = {}
    for approximate in ("tanh", "none"):
        for name, added in {"": None, " with bias": bias}.items():
            pairs[f"gelu {approximate}{name}", "forward"] = _gelu_forward(x, added, approximate)
            pairs[f"gelu {approximate}{name}", "backward"] = _gelu_backward(
                dout, x, added, approximate
            )
    return pairs


def _gelu_forward(x: Tensor, bias: Tensor | None, approximate: str) -> Pair:
    def stock() -> object:
        return gelu(x if bias is None else x + bias, approximate=approximate)

    def kernel() -> object:
        return functional.bias_gelu(x, bias, approximate=approximate, backend="cpu")

    return stock, kernel


def _gelu_backward(dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> Pair:
    def stock() -> object:
        if bias is None:
            return aten.gelu_backward(dout, x, approximate=approximate)
        dx = aten.gelu_backward(dout, x + bias, approximate=approximate)  # like ours: keeps x only
        return dx, dx.sum(0)

    def kernel() -> object:
        return ops.bias_gelu_bwd(dout, x, bias, approximate, "cpu")

    return stock, kernel


def norm_pairs(
    rows: tuple[int, ...], channels: int, dtype: torch.dtype
) -> Mapping[tuple[str, str], Pair]:
    """LayerNorm of two streams: alone, after a residual sum, and after a slot mean as well."""

    def tokens() -> list[Tensor]:
        return [torch.randn(1, count, channels).to(dtype) for count in rows]

    streams, branches, dsums, dnormed = tokens(), tokens(), tokens(), tokens()
    weights, biases = ([torch.randn(channels).to(dtype) for _ in rows] for _ in range(2))
    none: list[Any] = [None] * len(rows)
    shape = [channels]
    stats = ops.add_layer_norm_fwd(streams, none, weights, biases, none, 0, EPS, "cpu")[
        -len(rows) :
    ]
    each = zip(streams, weights, biases, strict=True)
    torch_stats = [torch.native_layer_norm(x, shape, w, b, EPS) for x, w, b in each]

    def forward(added: list[Any], slots: int) -> Pair:
        def stock() -> object:
            pairs = zip(streams, added, strict=True)
            sums = [stream if branch is None else stream + branch for stream, branch in pairs]
            functional.share_slots_(sums, slots)
            each = zip(sums, weights, biases, strict=True)
            return sums, [layer_norm(total, shape, w, b, EPS) for total, w, b in each]

        def kernel() -> object:
            return functional.add_layer_norm(
                streams, added, weights, biases, eps=EPS, n_bottlenecks=slots, backend="cpu"
            )

        return stock, kernel

    def backward(dsums: list[Any]) -> Pair:
        def stock() -> object:
            results = []
            each = zip(dsums, dnormed, streams, torch_stats, weights, biases, strict=True)
            for dsum, dout, total, (_, mean, rstd), w, b in each:
                grads = aten.native_layer_norm_backward(
                    dout, total, shape, mean, rstd, w, b, [True] * 3
                )
                results.append((grads[0] if dsum is None else grads[0] + dsum, *grads[1:]))
            return results

        def kernel() -> object:
            return ops.add_layer_norm_bwd(dsums, dnormed, streams, stats, weights, none, 0, "cpu")

        return stock, kernel

    return {
        ("layer_norm", "forward"): forward(none, 0),
        ("layer_norm", "backward"): backward(none),
        ("add, layer_norm", "forward"): forward(branches, 0),
        ("add, layer_norm", "backward"): backward(dsums),
        ("add, share slots, layer_norm", "forward"): forward(branches, SLOTS),
    }
