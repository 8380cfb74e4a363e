"""GELU with bias on a kernel backend."""

import importlib
from typing import Any

import torch
from torch import Tensor

from mbt_fast.ops.library import LIBRARY, one_by_one

LAUNCHERS = {"triton": "mbt_fast.kernels.bias_gelu", "cpu": "mbt_fast.cpu.bias_gelu"}

LIBRARY.define("bias_gelu_fwd(Tensor x, Tensor? bias, str approximate, str backend) -> Tensor")
LIBRARY.define(
    "bias_gelu_bwd(Tensor dout, Tensor x, Tensor? bias, str approximate, str backend) "
    "-> (Tensor, Tensor)"
)


@torch.library.impl(LIBRARY, "bias_gelu_fwd", "CompositeExplicitAutograd")
def _fwd(x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> Tensor:
    return importlib.import_module(LAUNCHERS[backend]).bias_gelu_fwd(x, bias, approximate)


@torch.library.impl(LIBRARY, "bias_gelu_bwd", "CompositeExplicitAutograd")
def _bwd(
    dout: Tensor, x: Tensor, bias: Tensor | None, approximate: str, backend: str
) -> tuple[Tensor, Tensor]:
    return importlib.import_module(LAUNCHERS[backend]).bias_gelu_bwd(dout, x, bias, approximate)


@torch.library.register_fake("mbt_fast::bias_gelu_fwd", lib=LIBRARY)
def _fwd_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("mbt_fast::bias_gelu_bwd", lib=LIBRARY)
def _bwd_fake(dout: Tensor, x: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    dbias = x.new_empty(0, dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), dbias


bias_gelu_fwd = torch.ops.mbt_fast.bias_gelu_fwd.default
bias_gelu_bwd = torch.ops.mbt_fast.bias_gelu_bwd.default

torch.library.register_vmap("mbt_fast::bias_gelu_fwd", one_by_one(bias_gelu_fwd), lib=LIBRARY)
torch.library.register_vmap("mbt_fast::bias_gelu_bwd", one_by_one(bias_gelu_bwd), lib=LIBRARY)
