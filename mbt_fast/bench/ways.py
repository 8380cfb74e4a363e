"""Ways to run a model or a layer that give the same results: backend, savings, capture, dtype."""

from dataclasses import dataclass

import torch

from mbt_fast import dispatch
from mbt_fast.bench.ops import can_run
from mbt_fast.layers import Savings
from mbt_fast.layers.savings import MEMORIES
from mbt_fast.models import MBTConfig
from mbt_fast.profiling.measure import Setting

DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Way:
    """One way.

    Args:
        backend: ``"auto"`` or a name of the dispatch table.
        dtype: Of weights and inputs.
        memory: As in ``Savings``; of no account in inference.
        cls_only: As in ``Savings``.
        capture: As a CUDA graph.
    """

    backend: str
    dtype: torch.dtype
    memory: str = Savings.memory
    cls_only: bool = False
    capture: bool = False

    @property
    def savings(self) -> Savings:
        """What is neither computed nor kept."""
        return Savings(cls_only=self.cls_only, memory=self.memory)

    def name(self, setting: Setting) -> str:
        """What it is called among those of a setting."""
        parts = [self.backend]
        if setting.mode == "train":
            parts.append(f"memory {self.memory}")
        parts += ["CLS rows only"] * self.cls_only + ["captured"] * self.capture
        if self.dtype != setting.dtype:
            parts.append(str(self.dtype).removeprefix("torch."))
        return ", ".join(parts)


def stock(setting: Setting) -> Way:
    """PyTorch as a user would write it: its own attention, saving what autograd saves."""
    return Way("sdpa", setting.dtype, memory="full")


def usual(setting: Setting) -> Way:
    """What a user gets who chooses nothing."""
    return Way("auto", setting.dtype)


def of_layer(config: MBTConfig, setting: Setting) -> list[Way]:
    """All that differ in one layer: every backend that can run it, then the savings."""
    named = [Way(name, setting.dtype) for name in able_backends(config, setting)]
    ways = [stock(setting), usual(setting), *_savings(setting), *named]
    return _distinct(ways, setting)


def of_model(config: MBTConfig, setting: Setting, *, any_dtype: bool) -> list[Way]:
    """The sensible ones: not the eager reference, nor by name what ``"auto"`` takes anyway.

    Args:
        config: The model.
        setting: Its dtype and device.
        any_dtype: Whether other dtypes are to be compared.
    """
    call = attention_call(config, setting)
    passed_over = {dispatch.select(call), "sdpa", "reference"}
    named = [n for n in able_backends(config, setting) if n not in passed_over]
    ways = [stock(setting), usual(setting), *_savings(setting)]
    ways += [Way(name, setting.dtype) for name in named]
    if setting.mode == "forward" and setting.device.type == "cuda":
        ways.append(Way("auto", setting.dtype, cls_only=True, capture=True))
    if any_dtype:
        ways += [Way("auto", dtype) for dtype in DTYPES if dtype != setting.dtype]
    return _distinct(ways, setting)


def able_backends(config: MBTConfig, setting: Setting) -> list[str]:
    """Backends that can run the fused layers when they are named."""
    call = attention_call(config, setting)
    return [backend.name for backend in dispatch.BACKENDS if can_run(backend, call)[0]]


def attention_call(config: MBTConfig, setting: Setting) -> dispatch.Call:
    """The attention of a fused layer as dispatch sees it."""
    rows = max(config.n_tokens(m) for m in config.modalities) + config.n_slots
    op = "dense_attention" if is_pairwise(config) else "bottleneck_attention"
    return dispatch.Call(op, setting.device, setting.dtype, rows)


def is_pairwise(config: MBTConfig) -> bool:
    """Whether each stream attends to the keys of all (Eq. 5-6)."""
    several = len(config.modalities) > 1
    return config.fusion == "vanilla" and several and not config.share_encoder


def _savings(setting: Setting) -> list[Way]:
    memories = MEMORIES if setting.mode == "train" else ()
    ways = [Way("auto", setting.dtype, memory=memory) for memory in memories]
    return [*ways, Way("auto", setting.dtype, cls_only=True)]


def _distinct(ways: list[Way], setting: Setting) -> list[Way]:
    return list({way.name(setting): way for way in ways}.values())
