"""FLOPs of an MBT in closed form: matrix products only, two per multiply-add, one clip.

A block with ``n`` queries and ``m`` keys costs ``4nC^2`` (query, output) + ``4mC^2`` (key, value) +
``4nC * mlp_dim`` in its Linears, and ``4nmC`` in attention. Element-wise work adds 0.5 to 0.8 % in
the official code as XLA counts it, and is not included.

Example:
    >>> from mbt_fast import MBTConfig
    >>> cost = forward_flops(MBTConfig(n_bottlenecks=5))
    >>> round(cost.total / 1e9, 2), round(cost.attention / 1e9, 2)
    (434.45, 96.92)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from mbt_fast.config import MBTConfig
from mbt_fast.layers.embed import CHANNELS

COSTS = ("efficient", "official")


@dataclass(frozen=True)
class LayerFlops:
    """One layer, all modalities."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Linears and attention."""
        return self.linear + self.attention


@dataclass(frozen=True)
class ModelFlops:
    """A whole model, part by part."""

    stem: int
    layers: tuple[LayerFlops, ...]
    head: int

    @property
    def linear(self) -> int:
        """The Linears of all layers."""
        return sum(layer.linear for layer in self.layers)

    @property
    def attention(self) -> int:
        """The two products of attention, of all layers."""
        return sum(layer.attention for layer in self.layers)

    @property
    def stem_head(self) -> int:
        """Patch embedding and classifier."""
        return self.stem + self.head

    @property
    def total(self) -> int:
        """Everything."""
        return self.linear + self.attention + self.stem_head


def forward_flops(
    config: MBTConfig, cost: str = "efficient", *, cls_only: bool = False
) -> ModelFlops:
    """Count one forward pass over one clip.

    Args:
        config: The model.
        cost: ``"efficient"`` counts what the equations ask for, and what ``MBT`` computes with
            its default options; but for heads below 16 channels, which it pads.
            ``"official"`` counts vanilla fusion with own weights as the official code computes it:
            each modality's whole block over the tokens of all, of which only its own are kept.
        cls_only: Count the last layer for the CLS rows alone, all that a token head reads: every
            key and value, but one query per modality. What ``MBT`` computes with
            ``set_execution(cls_only=True)``.

    Raises:
        ValueError: ``cost`` is unknown, or ``cls_only`` is asked of a head that reads all tokens.
    """
    if cost not in COSTS:
        raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {cost!r}")
    if cls_only and not config.n_cls:
        raise ValueError(f"cls_only must be False for classifier={config.classifier!r}, got True")
    last = config.num_layers - 1
    layers = tuple(
        _layer(config, index, cost, cls_only and index == last) for index in range(last + 1)
    )
    return ModelFlops(_stem(config), layers, _head(config))


def training_flops(
    config: MBTConfig, cost: str = "efficient", *, cls_only: bool = False
) -> ModelFlops:
    """Count forward and backward of one clip; arguments as in ``forward_flops``.

    A Linear costs three times its forward, and the stem, whose input needs no gradient, twice.
    Attention costs 3.5 times: a fused backward computes five products, the scores among them.
    """
    return both_passes(forward_flops(config, cost, cls_only=cls_only))


def both_passes(once: ModelFlops) -> ModelFlops:
    """Forward and backward, from the forward; see ``training_flops``."""
    layers = tuple(LayerFlops(3 * layer.linear, 7 * layer.attention // 2) for layer in once.layers)
    return ModelFlops(2 * once.stem, layers, 3 * once.head)


def stream_flops(config: MBTConfig, modality: str) -> ModelFlops:
    """Count one forward pass of one modality's stream, slots included; with its share of the head.

    Raises:
        ValueError: Streams are not computed apart: they share blocks, or attend to one another.
    """
    if config.share_encoder or config.fusion != "bottleneck":
        raise ValueError("fusion must be 'bottleneck' with blocks of their own for each modality")
    own, fused = config.n_tokens(modality), len(config.modalities) > 1
    rows = [
        own + config.n_slots * (fused and index >= config.fusion_layer)
        for index in range(config.num_layers)
    ]
    layers = tuple(_block(config, n, n) for n in rows)
    return ModelFlops(_patches(config, modality), layers, _head(config) // len(config.modalities))


def _layer(config: MBTConfig, index: int, cost: str, cls_only: bool) -> LayerFlops:
    own = {modality: config.n_tokens(modality) for modality in config.modalities}
    everything = sum(own.values())
    fused = index >= config.fusion_layer and len(own) > 1
    if fused and config.fusion == "vanilla":
        if config.share_encoder:
            queries = len(own) if cls_only else everything
            return _block(config, queries, everything)
        if cost == "official" and not cls_only:
            own = dict.fromkeys(own, everything)
        return _sum(_block(config, 1 if cls_only else n, everything) for n in own.values())
    slots = config.n_slots if fused else 0
    return _sum(_block(config, 1 if cls_only else n + slots, n + slots) for n in own.values())


def _block(config: MBTConfig, queries: int, keys: int) -> LayerFlops:
    width = config.hidden_size
    linear = 4 * (queries + keys) * width**2 + 4 * queries * width * config.mlp_dim
    return LayerFlops(linear, 4 * queries * keys * width)


def _sum(blocks: Iterable[LayerFlops]) -> LayerFlops:
    blocks = list(blocks)
    return LayerFlops(sum(b.linear for b in blocks), sum(b.attention for b in blocks))


def _stem(config: MBTConfig) -> int:
    return sum(_patches(config, modality) for modality in config.modalities)


def _patches(config: MBTConfig, modality: str) -> int:
    pixels = prod(config.grid(modality)) * prod(config.patch_size[modality])
    return 2 * CHANNELS * pixels * config.hidden_size


def _head(config: MBTConfig) -> int:
    heads = 1 if config.classifier == "gap" else len(config.modalities)
    return 2 * heads * config.hidden_size * config.num_classes
