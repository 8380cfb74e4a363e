"""The ops of a fusion layer on every backend, at the shapes that the model gives them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mbt_fast import dispatch
from mbt_fast.bench.comparison import Bench, Deadline, Run
from mbt_fast.bench.rows import Row
from mbt_fast.functional import add_layer_norm, bias_gelu, bottleneck_attention, residual_add
from mbt_fast.models import MBTConfig
from mbt_fast.profiling.measure import Setting
from mbt_fast.validation import MIN_HEAD_DIM

INTERPRETED = "not run: Triton's interpreter says nothing of the kernel's speed"


@dataclass(frozen=True)
class Op:
    """An op and one call of it.

    Args:
        name: As in ``dispatch``.
        call: What dispatch looks at.
        stock: The backend that is stock PyTorch, which all are compared with.
        leaves: The tensors that get gradients in training.
        run: Calls the op on a backend; returns all that it computes.
    """

    name: str
    call: dispatch.Call
    stock: str
    leaves: Sequence[Tensor]
    run: Callable[[str], Sequence[Tensor]]

    def timed(self, backends: Sequence[str], mode: str) -> dict[str, Run]:
        """What is timed of each backend: the forward, or forward and backward."""
        if mode == "forward":
            return {name: torch.inference_mode()(partial(self.run, name)) for name in backends}
        gradients = [torch.randn_like(out) for out in self.run(self.stock)]
        return {name: partial(self._step, name, gradients) for name in backends}

    def _step(self, backend: str, gradients: Sequence[Tensor]) -> object:
        return torch.autograd.grad(self.run(backend), self.leaves, gradients)


def measure_ops(bench: Bench, config: MBTConfig, deadline: Deadline) -> None:
    """Time every op on every backend that can run it by name."""
    ops = list(ops_of(config, bench.setting))
    for index, op in enumerate(ops):
        measure_op(bench, op, deadline.share(1 / (len(ops) - index)))


def measure_op(bench: Bench, op: Op, deadline: Deadline) -> None:
    """Time one op; stock PyTorch first."""
    backends = sorted(dispatch.BACKENDS, key=lambda backend: backend.name != op.stock)
    bench.taken[op.name] = dispatch.select(op.call)
    rows, able = {}, []
    for backend in backends:
        if backend.ops and op.name not in backend.ops:
            continue
        runs, note = can_run(backend, op.call)
        able += [backend.name] * runs
        rows[backend.name] = Row(
            "op", op.name, backend.name, batch_size=bench.setting.batch_size, note=note
        )
    bench.compare(rows, op.timed(able, bench.setting.mode), deadline)


def can_run(backend: dispatch.Backend, call: dispatch.Call) -> tuple[bool, str]:
    """Whether a backend is worth timing, and what dispatch says of it."""
    if dispatch.INTERPRET and backend.name == "triton":
        return False, INTERPRETED
    return not backend.reasons(call), dispatch.verdict(backend, call)


def ops_of(config: MBTConfig, setting: Setting) -> Iterator[Op]:
    """The ops with random tensors, of all streams; GELU of the longest."""
    rows = [config.n_tokens(m) + config.n_slots for m in config.modalities]
    yield _attention(config, setting, rows)
    yield _gelu(config, setting, max(rows))
    yield _norm(config, setting, rows)
    yield _residual(config, setting, rows)


def _attention(config: MBTConfig, setting: Setting, rows: Sequence[int]) -> Op:
    head_dim = max(config.head_dim, MIN_HEAD_DIM)
    qkv = [_random(setting, row, 3, config.num_heads, head_dim) for row in rows]
    call = dispatch.Call.of("bottleneck_attention", qkv)
    slots = config.n_slots

    def run(backend: str) -> Sequence[Tensor]:
        return bottleneck_attention(qkv, slots, backend=backend)

    return Op(call.op, call, "sdpa", qkv, run)


def _gelu(config: MBTConfig, setting: Setting, rows: int) -> Op:
    x = _random(setting, rows, config.mlp_dim)
    call = dispatch.Call.of_layer("bias_gelu", [x])
    return Op(call.op, call, "reference", [x], lambda backend: [bias_gelu(x, backend=backend)])


def _norm(config: MBTConfig, setting: Setting, rows: Sequence[int]) -> Op:
    streams, branches = (_tokens(config, setting, rows) for _ in range(2))
    weights, biases = ([_random(setting, config.hidden_size)[0] for _ in rows] for _ in range(2))
    slots = config.n_slots
    call = dispatch.Call.of_layer("add_layer_norm", streams)

    def run(backend: str) -> Sequence[Tensor]:
        sums, normed = add_layer_norm(
            streams, branches, weights, biases, n_bottlenecks=slots, backend=backend
        )
        return [*sums, *normed]

    return Op(call.op, call, "reference", [*streams, *branches, *weights, *biases], run)


def _residual(config: MBTConfig, setting: Setting, rows: Sequence[int]) -> Op:
    streams, branches = (_tokens(config, setting, rows) for _ in range(2))
    slots = config.n_slots
    call = dispatch.Call.of_layer(dispatch.RESIDUAL[slots > 0 and len(rows) > 1], streams)

    def run(backend: str) -> Sequence[Tensor]:
        return residual_add(streams, branches, n_bottlenecks=slots, backend=backend)

    return Op(call.op, call, "reference", [*streams, *branches], run)


def _tokens(config: MBTConfig, setting: Setting, rows: Sequence[int]) -> list[Tensor]:
    """A stream of each length."""
    return [_random(setting, row, config.hidden_size) for row in rows]


def _random(setting: Setting, *shape: int) -> Tensor:
    """Normally distributed ``[B, *shape]``, a leaf in training."""
    x = torch.randn(setting.batch_size, *shape, device=setting.device, dtype=setting.dtype)
    return x.requires_grad_(setting.mode == "train")
