"""What an MBT takes of a machine: FLOPs in closed form, the rest counted without computing it."""

import torch

from mbt_fast import flops
from mbt_fast.config import MBTConfig
from mbt_fast.models import MBT
from mbt_fast.parallel.activations import kept_bytes
from mbt_fast.parallel.sharded import held_parameters
from mbt_fast.parallel.traffic import exchanged_numbers, exchanges_of
from mbt_fast.parallel.work import Stream, Work


def work_of(
    config: MBTConfig, dtype: torch.dtype, world: int, *, recompute: str, backend: str
) -> Work:
    """Count what a model takes.

    Args:
        config: The model.
        dtype: Of autocast; float32 for none.
        world: For which FSDP2 is asked what a rank holds.
        recompute: As in ``MBT.set_execution``.
        backend: As in ``MBT.set_backend``.
    """

    def kept(model: MBTConfig, clips: int) -> int:
        return kept_bytes(model, clips, dtype, recompute=recompute, backend=backend)

    def stream(modality: str) -> Stream:
        forward = flops.stream_flops(config, modality)
        alone = config.replace(modalities=(modality,))  # without slots, a fraction of a percent
        own = sum(p.numel() for name, p in model.named_parameters() if modality in name.split("."))
        both = flops.both_passes(forward).total
        return Stream(own, forward.total, both, kept(alone, 2) - kept(alone, 1))

    with torch.device("meta"):
        model = MBT(config)
    parameters = sum(p.numel() for p in model.parameters())
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
    forward = flops.forward_flops(config)
    once, twice = kept(config, 1), kept(config, 2)
    apart = config.modalities if _can_be_apart(config) else ()
    return Work(
        parameters=parameters,
        forward=forward.total,
        both=flops.both_passes(forward).total,
        kept=twice - once,
        fixed=2 * once - twice,
        units=(*layers, parameters - sum(layers)),
        streams={modality: stream(modality) for modality in apart},
        exchanges=exchanges_of(config),
        slots=exchanged_numbers(config),
        shares={world: held_parameters(model, world)},
    )


def _can_be_apart(config: MBTConfig) -> bool:
    """Whether the modalities meet in the mean over their slots alone."""
    meets = config.update_order or config.classifier == "gap" or config.share_encoder
    return config.n_slots > 0 and not meets
