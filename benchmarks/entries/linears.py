"""The Linears of a layer on a GPU: modalities together, and GELU in the product's epilogue.

At small batches one product does not fill the GPU, and modalities may share it: side by side as
branches of a captured graph, or as one grouped product of packed rows. Torch offers GELU in a
product's epilogue (cublasLt) for inference only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch.nn.functional import gelu, grouped_mm, linear

from benchmarks.case import Case, Run, Scope, Variant
from mbt_fast.functional import bias_gelu
from mbt_fast.layers.branches import run_towers, towers_apart

WIDTHS = {"qkv": (768, 2304), "proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768)}
ROWS = (1573, 405)
DTYPE = torch.bfloat16
MODALITIES = ("rgb", "spectrogram")


def cases(scope: Scope) -> Iterator[Case]:
    """Every Linear of MBT-B at batch 1, 8 and 64; then the MLP's first with its GELU."""
    for batch in (1,) if scope.smoke else (1, 8, 64):
        for name, widths in WIDTHS.items():
            yield _case(name, batch, widths, scope, linears, "one by one")
        yield _case("fc1, gelu", batch, WIDTHS["fc1"], scope, with_gelu, "linear, gelu")


def _case(
    name: str,
    batch: int,
    widths: tuple[int, int],
    scope: Scope,
    variants: Callable[..., Mapping[str, Variant]],
    baseline: str,
) -> Case:
    inputs, outputs = (8, 16) if scope.smoke else widths
    rows = [batch * count for count in ((9, 5) if scope.smoke else ROWS)]
    return Case(
        name=name,
        mode="forward",
        shape={"batch": batch, "rows": rows, "inputs": inputs, "outputs": outputs},
        dtype=DTYPE,
        variants=partial(variants, rows, inputs, outputs, scope),
        baseline=baseline,
        graph=batch <= 8,
    )


def linears(rows: Sequence[int], inputs: int, outputs: int, scope: Scope) -> dict[str, Variant]:
    """The same Linear of both modalities, each with its own weights."""
    packed = torch.randn(sum(rows), inputs, device=scope.device, dtype=DTYPE)
    xs = packed.split(list(rows))
    weights = torch.randn(len(rows), outputs, inputs, device=scope.device, dtype=DTYPE)
    biases = torch.randn(len(rows), outputs, device=scope.device, dtype=DTYPE)
    ends = torch.tensor(rows, device=scope.device).cumsum(0).to(torch.int32)
    each = dict(zip(MODALITIES, zip(xs, weights, biases, strict=True), strict=True))

    def one_by_one() -> object:
        return [linear(*tensors) for tensors in each.values()]

    def side_by_side() -> object:
        with towers_apart():
            return run_towers(lambda names: {m: linear(*each[m]) for m in names}, MODALITIES)

    def grouped() -> object:  # the bias is not in it
        return grouped_mm(packed, weights.mT, offs=ends)

    runs: dict[str, Run] = {"one by one": one_by_one, "grouped, no bias": grouped}
    if scope.gpu:
        runs["side by side"] = side_by_side
    flops = 2 * sum(rows) * inputs * outputs
    return {name: Variant(run=torch.no_grad()(run), flops=flops) for name, run in runs.items()}


def with_gelu(rows: Sequence[int], inputs: int, outputs: int, scope: Scope) -> dict[str, Variant]:
    """A Linear and tanh-GELU of all rows, in inference."""
    x = torch.randn(sum(rows), inputs, device=scope.device, dtype=DTYPE)
    weight = torch.randn(outputs, inputs, device=scope.device, dtype=DTYPE)
    bias = torch.randn(outputs, device=scope.device, dtype=DTYPE)

    def apart() -> object:
        return gelu(linear(x, weight, bias), approximate="tanh")

    def ours() -> object:
        return bias_gelu(linear(x, weight), bias)

    def epilogue() -> object:
        return torch._addmm_activation(bias, x, weight.T, use_gelu=True)

    compiled = torch.compile(apart)
    flops = 2 * sum(rows) * inputs * outputs
    runs = {"linear, gelu": apart, "ours": ours, "epilogue": epilogue}
    runs["linear, gelu, compiled"] = compiled
    return {
        name: Variant(run=torch.no_grad()(run), flops=flops, compiled=run is compiled)
        for name, run in runs.items()
    }
