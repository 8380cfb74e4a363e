"""Every way to fuse, by its name in ``benchmarks.registry``: ours, and those on stock PyTorch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks import eager
from benchmarks.case import Case, Variants
from mbt_fast import MBT, MBTConfig
from mbt_fast.flops import forward_flops, training_flops
from mbt_fast.models.registry import config_for
from mbt_fast.profiling.measure import Setting, build_models, random_inputs

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
NO_SAVINGS: dict[str, Any] = {"cls_only": False, "skip_dropped": False, "memory": "full"}


class Way(NamedTuple):
    """How a layer fuses on stock PyTorch, and which model has weights for that."""

    fuse: eager.Fuse = eager.bottleneck
    compiled: bool = False
    kernel: eager.Kernel = None
    changes: Mapping[str, Any] = {}

    def config(self, base: MBTConfig) -> MBTConfig:
        """The configuration of its model."""
        return replace(base, **self.changes)

    def forward(self, model: MBT, inputs: Mapping[str, Tensor]) -> Tensor:
        """The whole model."""
        return eager.forward(model, inputs, self.fuse, kernel=self.kernel, compiled=self.compiled)

    @property
    def cost(self) -> str:
        """How ``mbt_fast.flops`` counts it."""
        return "official" if self.fuse is eager.vanilla_official else "efficient"


OWN = {"fusion": "vanilla"}
SHARED = {"fusion": "vanilla", "share_encoder": True}
WAYS = {
    "eager": Way(),
    "eager, compiled": Way(compiled=True),
    "eager, compiled, cudnn": Way(compiled=True, kernel=CUDNN),
    "eager, compiled, flash": Way(compiled=True, kernel=FLASH),
    "vanilla own": Way(eager.vanilla_own, changes=OWN),
    "vanilla own, compiled": Way(eager.vanilla_own, compiled=True, changes=OWN),
    "vanilla shared": Way(eager.apart, changes=SHARED),
    "vanilla shared, compiled": Way(eager.apart, compiled=True, changes=SHARED),
    "vanilla official": Way(eager.vanilla_official, changes=OWN),
}
WAYS_ON_CPU = ("eager", "eager, compiled", "vanilla own", "vanilla shared", "vanilla official")
WAYS_ON_GPU = (
    "eager",
    "eager, compiled",
    "eager, compiled, cudnn",
    "eager, compiled, flash",
    "vanilla own, compiled",
    "vanilla shared, compiled",
    "vanilla official",
)

# What layer and model are run with on a GPU; the most informative first, because each compiles.
ON_GPU = (("forward", 1), ("step", 8), ("forward", 64), ("step", 64), ("forward", 8), ("step", 1))


def ways(device: torch.device) -> dict[str, Way]:
    """Those that are measured on this type of device: compiled ones where compiling pays."""
    return {name: WAYS[name] for name in (WAYS_ON_GPU if device.type == "cuda" else WAYS_ON_CPU)}


class Task(NamedTuple):
    """A model, a batch and what to do with it."""

    name: str
    mode: str
    batch: int
    dtype: torch.dtype
    changes: Mapping[str, Any] = {}

    @property
    def config(self) -> MBTConfig:
        """The configuration of the model that fuses through bottlenecks."""
        return config_for(self.name, **self.changes)

    def shape(self) -> dict[str, Any]:
        """As records have it."""
        config = self.config
        return {
            "model": self.name,
            "batch": self.batch,
            "tokens": [config.n_tokens(m) for m in config.modalities],
            "fusion_layer": config.fusion_layer,
            "n_bottlenecks": config.n_bottlenecks,
        }

    def case(self, name: str, variants: Variants, **options: Any) -> Case:
        """Variants of this task, measured under a name; ``options`` are fields of the case."""
        return Case(
            name=name,
            mode=self.mode,
            shape=self.shape(),
            dtype=self.dtype,
            variants=variants,
            **options,
        )

    def build(
        self, configs: list[MBTConfig], device: torch.device
    ) -> tuple[list[MBT], dict[str, Tensor]]:
        """Models that share their weights, and one batch."""
        mode = "forward" if self.mode == "forward" else "train"
        setting = Setting(mode, self.batch, device, self.dtype, "auto")
        return build_models(configs, setting), random_inputs(configs[0], setting)

    def flops(self, config: MBTConfig, cost: str = "efficient", *, cls_only: bool = False) -> Any:
        """Of one clip, part by part."""
        count = forward_flops if self.mode == "forward" else training_flops
        return count(config, cost, cls_only=cls_only)
