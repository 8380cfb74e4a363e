"""The optimizer of a run, and its learning rate as a function of the step.

Sources: scenic's ``lr_schedules`` for warm-up and cosine; Bao et al., "BEiT" (2021), and scenic's
``projects/av_mae`` for learning rates that fall with depth.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn, optim

from mbt_fast.train.loop_section import LoopConfig

Schedule = Callable[[int], float]

_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers|layer)\.(\d+)\.")
_EMBEDDING = re.compile(r"embed|(?:cls|dist|distillation|reg|mask)_token")


def build(
    model: nn.Module, config: LoopConfig, total_steps: int, warmup_steps: float = 0.0
) -> tuple[optim.Optimizer, Schedule]:
    """The optimizer, and what to multiply its learning rates by at each step.

    Weight decay is for the weights of linear maps and convolutions only: not for biases, norms, CLS
    and other tokens, positions and bottleneck tokens. With SGD it is part of the gradient, with
    AdamW it is not. The official recipe has none.

    With ``layer_decay`` below 1 the learning rate falls from the top down: layer ``l`` of ``L`` has
    ``layer_decay ** (L - l)`` of the head's, the embeddings ``layer_decay ** (L + 1)``. Bottleneck
    tokens, which are new, learn like the head.

    Args:
        model: Whose parameters that require gradients are trained.
        config: ``TrainConfig.train``: ``optimizer``, ``lr``, ``momentum`` or ``betas``,
            ``weight_decay``, ``layer_decay`` and ``schedule`` are read.
        total_steps: Steps of the run.
        warmup_steps: Steps of linear warm-up; a fraction counts, as in the official code.

    Returns:
        The optimizer, whose groups hold named parameters and their own ``initial_lr``; and the
        schedule. ``set_lr`` applies it.

    Raises:
        ValueError: Nothing requires gradients, or the model has no layers that ``layer_decay``
            could tell apart.
    """
    groups = list(_groups(model, config.lr, config.weight_decay, config.layer_decay))
    if not groups:
        raise ValueError("model must have a parameter that requires gradients, got none")
    optimizer: optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = optim.AdamW(groups, lr=config.lr, betas=config.betas)
    else:
        optimizer = optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return optimizer, schedule(config.schedule, total_steps, warmup_steps)


def schedule(kind: str, total_steps: int, warmup_steps: float = 0.0) -> Schedule:
    """Factor of the learning rate as a function of the steps that are done.

    It rises linearly from 0 to 1 over ``warmup_steps``. Then it falls as half a cosine to 0 at
    ``total_steps`` (``"cosine"``), or stays (``"constant"``).
    """
    falling = total_steps - int(warmup_steps)

    def factor(step: int) -> float:
        rise = min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0
        if kind == "constant" or falling <= 0:
            return rise
        progress = min(max(0.0, step - warmup_steps) / falling, 1.0)
        return rise * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def set_lr(optimizer: optim.Optimizer, factor: float) -> None:
    """Give each group ``factor`` times its own greatest learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]


def _groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float
) -> Iterator[dict[str, Any]]:
    """Parameters with the same weight decay and learning rate, named, in the model's order."""
    weights = _decayed(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depths = _depths([name for name, _ in model.named_parameters()], layer_decay)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        decay = weight_decay if id(parameter) in weights else 0.0
        groups.setdefault((decay, layer_decay ** depths[name]), []).append((name, parameter))
    for (decay, scale), parameters in groups.items():
        rate = lr * scale
        yield {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}


def _decayed(model: nn.Module) -> set[int]:
    """Identities of the parameters that weight decay is for."""
    return {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("weight") and parameter.ndim >= 2
    }


def _depths(names: list[str], layer_decay: float) -> dict[str, int]:
    """How far each parameter lies below the head, in layers."""
    layers = {name: int(found[1]) for name in names if (found := _LAYER.search(name))}
    if not layers and layer_decay != 1:
        raise ValueError(
            f"layer_decay must be 1 for a model without numbered layers, got {layer_decay}"
        )
    n_layers = 1 + max(layers.values(), default=-1)
    below = {name: n_layers - index for name, index in layers.items()}
    embedding = {name: n_layers + 1 for name in names if _EMBEDDING.search(name)}
    return dict.fromkeys(names, 0) | embedding | below
