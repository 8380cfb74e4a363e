"""From a call of an op to ``cuLaunchKernelEx``: Triton's binder, compiler and launcher, no GPU.

The interpreter sees none of these. Here a driver without a device records what they hand over.
"""

import importlib
import struct
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from triton_device import triton_device

from mbt_fast import kernels
from mbt_fast.functional import (
    add_layer_norm,
    bias_gelu,
    bottleneck_attention,
    residual_add,
)


class Case(NamedTuple):
    """A call of every op, forward and backward."""

    rows: tuple[int, ...]  # of each stream, slots included
    slots: int
    batch: int = 2
    lengths: tuple[bool, ...] = (False,) * 4  # which streams have them
    update: str | None = None
    keep: tuple[bool, ...] = (False,) * 4  # which streams drop branches
    branches: bool = True
    bias: bool = True  # of GELU
    lse: bool = False
    spread: bool = False  # whether tensors lie apart in memory


# fmt: off
CASES = {
    "one-stream-without-slots": Case((19,), 0),
    "two-streams": Case((37, 21), 4, update="mean", lengths=(False, True), keep=(True, False)),
    "three-of-equal-rows": Case((12,) * 3, 1, lengths=(True, False, True), lse=True, spread=True),
    "four-one-of-one-row": Case(
        (5, 1, 40, 3), 1, lengths=(True,) * 4, update="mean", keep=(True,) * 4, branches=False,
        bias=False,
    ),
}
# fmt: on
HEADS, DIM, CHANNELS = 3, 16, 48
FILES = [path.stem for path in Path(kernels.__file__).parent.glob("*.py")]


def tensor(case, *shape):
    """A leaf in bfloat16; its rows have gaps between them if the case says so."""
    wide = torch.zeros(*shape[:-1], shape[-1] + 16 * case.spread, dtype=torch.bfloat16)
    return wide[..., : shape[-1]].detach().requires_grad_()


def make(case):
    """Packed streams, streams, branches, weights and biases."""
    each = [(case.batch, s) for s in case.rows]
    streams, branches = ([tensor(case, *s, CHANNELS) for s in each] for _ in range(2))
    weights, biases = ([tensor(case, CHANNELS) for _ in each] for _ in range(2))
    qkv = [tensor(case, *s, 3, HEADS, DIM) for s in each]
    return qkv, streams, branches if case.branches else None, weights, biases


def lengths_of(case, has):
    valid = torch.zeros(case.batch, dtype=torch.int32)
    return [valid if given else None for given in has[: len(case.rows)]]


def call_every_op(case):
    """Forward and backward of all four ops; outputs mean nothing, for nothing is computed."""
    qkv, streams, branches, weights, biases = make(case)
    lengths = lengths_of(case, case.lengths) if any(case.lengths) and case.slots else None
    keep = [mask if mask is None else mask.bool() for mask in lengths_of(case, case.keep)]
    on = {"n_bottlenecks": case.slots, "lengths": lengths, "backend": "triton"}
    out = bottleneck_attention(qkv, update=case.update, return_lse=case.lse, **on)
    outs = [*out[0], *out[1]] if case.lse else out
    masks = keep if case.branches else None
    sums, normed = add_layer_norm(streams, branches, weights, biases, keep=masks, **on)
    outs += [*sums, *normed]
    outs += residual_add(streams, branches or streams, keep=keep, **on)
    for x, bias in zip(streams, biases, strict=True):
        outs.append(bias_gelu(x, bias if case.bias else None, backend="triton"))
    sum(out.float().sum() for out in outs).backward()


def flat(types, values):
    """(type, value) of each argument that is a parameter, tuples taken apart."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def as_bytes(kind, value):
    if kind[0] == "*":
        return struct.pack("<Q", value.data_ptr())
    return struct.pack({"fp32": "<f", "i32": "<i", "i64": "<q"}[kind], value)


def kernels_of(case):
    """Names of all kernels that a call of every op launches.

    With neither slots nor masks the gradient of a sum is what arrives.
    """
    modules = [importlib.import_module(f"mbt_fast.kernels.{file}") for file in FILES]
    names = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    names -= {"bottleneck_attention_slots_kernel"} if case.update is None else set()
    return names if case.slots or any(case.keep) else names - {"residual_add_bwd_kernel"}


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_arrives_where_the_ptx_expects_it(name, monkeypatch):
    with triton_device(monkeypatch, 90, run=None) as launches:
        call_every_op(CASES[name])
    assert {launch.name for launch in launches} == kernels_of(CASES[name])
    for launch in launches:
        given = flat(launch.types.values(), launch.arguments.values())
        expected = [as_bytes(kind, value) for kind, value in given]
        assert list(launch.parameters[: len(expected)]) == expected, launch.name
        scratch = launch.parameters[len(expected) :]
        assert scratch == (bytes(8), bytes(8)), "two more, which no kernel of ours uses"


@pytest.mark.parametrize("other", [
    {"rows": (90, 61), "batch": 3},
    {"rows": (128, 16), "batch": 1, "slots": 1},
    {"rows": (5, 5), "slots": 5},
], ids=str)  # fmt: skip
def test_other_lengths_compile_nothing(other, monkeypatch):
    case = CASES["two-streams"]
    with triton_device(monkeypatch, 90, run=None) as launches:
        call_every_op(case)
        compiled = {launch.function for launch in launches}
        before = len(launches)
        call_every_op(case._replace(**other))
    assert len(launches) == 2 * before
    assert {launch.function for launch in launches} == compiled
