"""The layer around attention against torch's own functions, forward and backward.

The shapes are those of MBT-B on eight seconds: 1573 and 405 rows, 768 channels, 3072 in the MLP; on
a GPU up to 64 clips, so that no tensor fits in a cache. All these wait for memory: records have the
bytes that must be moved. Both sides return the same results, with the host's cost of a call and
without autograd's. ``dispatch`` takes from these records where ``auto`` uses the C++ kernels.
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from benchmarks.case import Case, Run, Scope, Variant
from mbt_fast import functional, ops

SLOTS, EPS = 4, 1e-6
Pair = tuple[Run, Run]  # torch's, ours
GELUS = ("gelu tanh", "gelu tanh with bias", "gelu none", "gelu none with bias")
NORMS = ("layer_norm", "add, layer_norm", "add, share slots, layer_norm")
RESIDUALS = ("residual add, share slots", "residual add, dropped, share slots")
MOVED = {  # tensors [B, S, C] that are read and written, forward and backward
    **dict.fromkeys(GELUS, (2, 3)),
    "layer_norm": (2, 3),
    "add, layer_norm": (4, 4),
    "add, share slots, layer_norm": (4, 0),
    "residual add, share slots": (3, 2),
    "residual add, dropped, share slots": (3, 3),
}
BACKENDS = {"cpu": "cpu", "cuda": "triton"}
aten = torch.ops.aten


class Place(NamedTuple):
    """On what tensors the kernels of a device are compared with torch's own."""

    device: torch.device
    batch: int
    dtype: torch.dtype
    threads: int | None = None

    @property
    def backend(self) -> str:
        """The kernels of the device."""
        return BACKENDS[self.device.type]

    def random(self, *shape: int) -> Tensor:
        """A tensor of random numbers."""
        return torch.randn(shape, device=self.device).to(self.dtype)


class Size(NamedTuple):
    """Rows of the streams, their channels, and those in the MLP."""

    rows: tuple[int, ...]
    channels: int
    hidden: int


def cases(scope: Scope) -> Iterator[Case]:
    """GELU, LayerNorm and residual sums everywhere."""
    size = Size((9, 5), 16, 24) if scope.smoke else Size((1573, 405), 768, 3072)
    gelus = GELUS[:2] if scope.gpu else GELUS  # Triton has the tanh form alone
    for place in places(scope):
        for name in (*gelus, *NORMS, *RESIDUALS):
            for mode, moved in zip(("forward", "backward"), MOVED[name], strict=True):
                if moved:
                    yield _case(name, mode, place, size)


def places(scope: Scope) -> Iterator[Place]:
    """Two threads before one, the dtypes of models before float16."""
    if scope.gpu:
        yield from (Place(scope.device, batch, torch.bfloat16) for batch in (64, 8, 1))
        return
    for threads in (2,) if scope.smoke else (2, 1):
        for dtype in (torch.bfloat16, torch.float32, torch.float16):
            yield Place(scope.device, 1, dtype, threads)


def _case(name: str, mode: str, place: Place, size: Size) -> Case:
    in_mlp = name in GELUS
    rows = [sum(size.rows)] if in_mlp else list(size.rows)
    channels = size.hidden if in_mlp else size.channels
    moved = MOVED[name][mode == "backward"] * place.batch * sum(rows) * channels
    return Case(
        name=name,
        mode=mode,
        shape={"batch": place.batch, "rows": rows, "channels": channels},
        dtype=place.dtype,
        variants=partial(variants, name, mode, place, size, moved * place.dtype.itemsize),
        baseline="torch",
        threads=place.threads,
    )


def variants(name: str, mode: str, place: Place, size: Size, moved: int) -> Mapping[str, Variant]:
    """Torch's functions, on a GPU compiled too, and ours."""
    make = next(make for names, make in PAIRS.items() if name in names)
    stock, kernel = (torch.no_grad()(run) for run in make(place, size)[name, mode])
    found = {"torch": Variant(run=stock, bytes=moved)}
    if place.device.type == "cuda":
        found["torch, compiled"] = Variant(run=torch.compile(stock), bytes=moved, compiled=True)
    return found | {f"ours, {place.backend}": Variant(run=kernel, bytes=moved)}


@cache  # making inputs takes longer than using them
def gelu_pairs(place: Place, size: Size) -> Mapping[tuple[str, str], Pair]:
    """GELU of ``[B, rows, hidden]``, both approximations, with and without bias."""
    x, dout = (place.random(place.batch, sum(size.rows), size.hidden) for _ in range(2))
    bias = place.random(size.hidden)
    pairs: dict[tuple[str, str], Pair] = {}
    for approximate in ("tanh", "none"):
        for name, added in {"": None, " with bias": bias}.items():
            call = (place.backend, x, added, approximate)
            pairs[f"gelu {approximate}{name}", "forward"] = _gelu_forward(*call)
            pairs[f"gelu {approximate}{name}", "backward"] = _gelu_backward(dout, *call)
    return pairs


def _gelu_forward(backend: str, x: Tensor, bias: Tensor | None, approximate: str) -> Pair:
    def stock() -> object:
        return gelu(x if bias is None else x + bias, approximate=approximate)

    def kernel() -> object:
        return functional.bias_gelu(x, bias, approximate=approximate, backend=backend)

    return stock, kernel


def _gelu_backward(
    dout: Tensor, backend: str, x: Tensor, bias: Tensor | None, approximate: str
) -> Pair:
    def stock() -> object:
        if bias is None:
            return aten.gelu_backward(dout, x, approximate=approximate)
        dx = aten.gelu_backward(dout, x + bias, approximate=approximate)  # like ours: keeps x only
        return dx, dx.sum((0, 1))

    def kernel() -> object:
        return ops.bias_gelu_bwd(dout, x, bias, approximate, backend)

    return stock, kernel


@cache
def norm_pairs(place: Place, size: Size) -> Mapping[tuple[str, str], Pair]:
    """LayerNorm of two streams: alone, after a residual sum, and after a slot mean as well."""

    def tokens() -> list[Tensor]:
        return [place.random(place.batch, count, size.channels) for count in size.rows]

    streams, branches, dsums, dnormed = tokens(), tokens(), tokens(), tokens()
    weights, biases = ([place.random(size.channels) for _ in streams] for _ in range(2))
    none: list[Any] = [None] * len(streams)
    shape = [size.channels]
    each = zip(streams, weights, biases, strict=True)
    torch_stats = [torch.native_layer_norm(x, shape, w, b, EPS) for x, w, b in each]
    stats = [torch.stack([mean, rstd])[..., 0].float() for _, mean, rstd in torch_stats]

    def forward(added: list[Any], slots: int) -> Pair:
        def stock() -> object:
            pairs = zip(streams, added, strict=True)
            sums = [stream if branch is None else stream + branch for stream, branch in pairs]
            functional.share_slots_(sums, slots)
            each = zip(sums, weights, biases, strict=True)
            return sums, [layer_norm(total, shape, w, b, EPS) for total, w, b in each]

        def kernel() -> object:
            return functional.add_layer_norm(
                streams, added, weights, biases, eps=EPS, n_bottlenecks=slots, backend=place.backend
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
            return ops.add_layer_norm_bwd(
                dsums, dnormed, streams, stats, weights, none, none, 0, place.backend
            )

        return stock, kernel

    return {
        ("layer_norm", "forward"): forward(none, 0),
        ("layer_norm", "backward"): backward(none),
        ("add, layer_norm", "forward"): forward(branches, 0),
        ("add, layer_norm", "backward"): backward(dsums),
        ("add, share slots, layer_norm", "forward"): forward(branches, SLOTS),
    }


@cache
def residual_pairs(place: Place, size: Size) -> Mapping[tuple[str, str], Pair]:
    """The end of a layer: residual sums and their slot mean, also where branches may be dropped."""
    streams, branches, dsums = (
        [place.random(place.batch, count, size.channels) for count in size.rows] for _ in range(3)
    )
    kept = torch.ones(place.batch, dtype=torch.bool, device=place.device)
    pairs: dict[tuple[str, str], Pair] = {}
    for name, mask in zip(RESIDUALS, (None, kept), strict=True):
        keep = [mask] * len(streams)
        pairs[name, "forward"] = _residual_forward(place.backend, streams, branches, keep)
        pairs[name, "backward"] = _residual_backward(place.backend, dsums, keep)
    return pairs


def _residual_forward(
    backend: str, streams: list[Tensor], branches: list[Tensor], keep: list[Tensor | None]
) -> Pair:
    def stock() -> object:
        added = [_masked(*each) for each in zip(branches, keep, strict=True)]
        sums = [stream + branch for stream, branch in zip(streams, added, strict=True)]
        functional.share_slots_(sums, SLOTS)
        return sums

    def kernel() -> object:
        return functional.residual_add(
            streams, branches, keep=keep, n_bottlenecks=SLOTS, backend=backend
        )

    return stock, kernel


def _residual_backward(backend: str, dsums: list[Tensor], keep: list[Tensor | None]) -> Pair:
    none: list[Any] = [None] * len(dsums)

    def stock() -> object:
        dx = [dsum.clone() for dsum in dsums]
        functional.share_slots_(dx, SLOTS)
        return dx, [_masked(*each) for each in zip(dx, keep, strict=True)]

    def kernel() -> object:
        return ops.residual_add_bwd(dsums, keep, none, SLOTS, backend)

    return stock, kernel


def _masked(branch: Tensor, mask: Tensor | None) -> Tensor:
    """A branch where it is kept, as torch alone would leave it out."""
    return branch if mask is None else branch * mask[:, None, None].to(branch.dtype)


PAIRS = {GELUS: gelu_pairs, NORMS: norm_pairs, RESIDUALS: residual_pairs}
