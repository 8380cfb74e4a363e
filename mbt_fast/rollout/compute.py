"""``rollout``: what the classifiers of a model look at, by the attention of all layers together."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mbt_fast.models import MBT, FusedTowers
from mbt_fast.models.fused_classifier import FusedClassifier
from mbt_fast.ops.streams import expand
from mbt_fast.rollout.attention import Heads, Masses
from mbt_fast.rollout.observe import Observed, Target, check_target
from mbt_fast.rollout.of_fused import observe_fused
from mbt_fast.rollout.of_mbt import observe_mbt
from mbt_fast.rollout.result import Rollout
from mbt_fast.rollout.steps import Exchange, Rule, walk_down

RESIDUAL = 0.5


def rollout(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor] | None = None,
    *,
    heads: Heads = "mean",
    residual: float | None = None,
    target: Target | None = None,
    start: Mapping[str, Sequence[int]] | None = None,
) -> Rollout:
    """Attention rollout (Abnar and Zuidema, 2020), from each CLS token to all patches.

    Equal, for the rows ``x`` of all streams and the layers ``l``, last to first, to::

        A_l = mean over heads of softmax(scale * q @ k.mT)      # zero between streams
        mass = residual * mass + (1 - residual) * mass @ A_l    # from 1 at the CLS token

    and above each fused layer to an equal part of a slot's mass for each present stream's slot, the
    transpose of Eq. 9 of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al., 2021). It
    is a diagnostic: it says where attention goes, not why the model decides.

    The model runs as it is, on its backend and under autocast, and the input of each layer is kept;
    probabilities are computed again in float32 (float64 for float64), a few rows at a time. Memory
    is linear in the number of tokens; with a ``target`` it is that of a training step.

    With a ``target`` the matrices are those of Chefer et al. (2021, "Generic Attention-model
    Explainability", Eq. 5-6): the positive part of probability times the gradient of the class's
    logit, and ``mass = mass + mass @ A_l``; what the CLS token starts with is taken off, and the
    rest is scaled to the sum one.

    Args:
        model: An ``MBT``, what ``fuse`` returns, or a classifier of fused encoders, in eval mode.
        inputs: As the model takes them.
        lengths: Likewise.
        heads: ``"mean"``, ``"max"`` (rows are scaled to the sum one), or the numbers of the heads
            of whose probabilities the mean is taken.
        residual: The share that takes the residual connection, from 0 to 1; 0.5 if ``None``. Must
            be ``None`` with a ``target``.
        target: A class, or one for each example, int ``[B]``.
        start: Per modality the own tokens from which the rollout starts, in equal parts; by default
            those that its classifier reads. An encoder without a class token starts at all.

    Returns:
        The map of each given modality, and where the rest of the mass is. Float32, or float64 for
        float64. Zero for an example without any modality; with a ``target`` also where no attention
        speaks for the class.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: The model is in training mode, or an argument is out of range.

    Example:
        >>> from mbt_fast import create_model, rollout
        >>> model = create_model("mbt_tiny").eval()
        >>> clip = {"rgb": torch.randn(1, 3, 2, 32, 32), "spectrogram": torch.randn(1, 64, 32)}
        >>> {modality: tuple(x.shape) for modality, x in rollout(model, clip).items()}
        {'rgb': (1, 2, 2, 2), 'spectrogram': (1, 4, 2)}
    """
    rule = Rule(heads, _residual(residual, target))
    observed = _observe(model, inputs, lengths, target)
    _check_heads(heads, observed.num_heads)
    with torch.no_grad():
        begin = _begin(observed, start)
        last = observed.steps[-1].n_slots
        masses = {m: pad(x, (0, last)) for m, x in begin.items()}
        masses, learned, exchanges = walk_down(observed.steps, masses, rule)
        if target is not None:
            masses = {m: x - begin[m] for m, x in masses.items()}
        return _result(observed, begin, masses, learned, exchanges)


def _observe(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor] | None,
    target: Target | None,
) -> Observed:
    """Run a model of any kind."""
    if not isinstance(model, (MBT, FusedTowers, FusedClassifier)):
        raise TypeError(f"model must be an MBT or made by fuse, got {type(model).__name__}")
    if model.training:
        raise ValueError("model must be in eval mode, got one in training mode")
    if target is not None:
        if isinstance(model, FusedTowers):
            raise ValueError(f"target must be None without a classifier, got {target!r}")
        check_target(target, len(next(iter(inputs.values()))), model.config.num_classes)
    if isinstance(model, MBT):
        return observe_mbt(model, inputs, lengths, target)
    return observe_fused(model, inputs, lengths, target)


def _begin(observed: Observed, start: Mapping[str, Sequence[int]] | None) -> Masses:
    """One distribution for each given modality, on its own tokens: float64 ``[B, V, N_m]``."""
    rows = _start(observed, start)
    masses = {}
    for source, (m, grid) in enumerate(observed.grids.items()):
        valid = observed.valid[m]
        mass = torch.zeros(
            observed.batch, len(rows), grid.n_tokens, dtype=torch.float64, device=observed.device
        )
        mass[:, source, list(rows[m])] = 1.0
        if valid is not None:
            mass.masked_fill_(~valid[:, None], 0.0)
        masses[m] = mass / mass.sum(dim=-1, keepdim=True).clamp(min=1)
    return masses


def _result(
    observed: Observed,
    begin: Masses,
    masses: Masses,
    learned: Tensor,
    exchanges: Sequence[Exchange],
) -> Rollout:
    """Shares of the total, and their mean over the sources that are present."""
    total = learned.sum(dim=-1) + torch.stack([x.sum(dim=-1) for x in masses.values()]).sum(dim=0)
    rows = torch.stack([(x > 0).sum(dim=(1, 2)) for x in begin.values()], dim=1)  # [B, V]
    scale = torch.where((rows > 0) & (total > 0), 1 / total, 0)
    votes = rows if observed.joint else (rows > 0).long()
    weight = scale * votes / votes.sum(dim=1, keepdim=True).clamp(min=1)

    def share(x: Tensor) -> Tensor:
        """The mean over the sources of ``[B, V, ...]``."""
        return (x * expand(weight, x)).sum(dim=1).to(observed.dtype)

    cls, patches = {}, {}
    for m, grid in observed.grids.items():
        cls[m], patches[m] = grid.split(masses[m])

    def flows_of(name: str) -> list[Masses]:
        """One for each layer, or with an update order for each modality of a layer."""
        return [getattr(exchange, name) for exchange in exchanges]

    flows = {
        name: {
            m: torch.stack([share(flow[m]) for flow in flows_of(name) if m in flow], dim=1)
            for m in masses
            if exchanges
        }
        for name in ("read", "written")
    }
    return Rollout(
        {m: share(x) for m, x in patches.items()},
        cls={m: share(x) for m, x in cls.items()},
        bottlenecks=share(learned),
        by_source={
            source: {
                m: (x[:, v] * expand(scale[:, v], x[:, v])).to(observed.dtype)
                for m, x in patches.items()
            }
            for v, source in enumerate(observed.grids)
        },
        **flows,
    )


def _start(
    observed: Observed, start: Mapping[str, Sequence[int]] | None
) -> dict[str, Sequence[int]]:
    """Rows of every given modality; those that are named in place of the default."""
    if start is None:
        return dict(observed.start)
    for m, rows in start.items():
        if m not in observed.grids:
            raise ValueError(f"start must be of given inputs, got {m!r} without input")
        most = observed.grids[m].n_tokens - 1
        wrong = [row for row in rows if type(row) is not int or not 0 <= row <= most]
        if wrong or not rows:
            raise ValueError(f"start[{m!r}] must hold own tokens, 0..{most}, got {list(rows)}")
    return {**observed.start, **start}


def _residual(residual: float | None, target: Target | None) -> float | None:
    if target is not None:
        if residual is not None:
            raise ValueError(f"residual must be None with a target, got {residual!r}")
        return None
    if residual is None:
        return RESIDUAL
    if not isinstance(residual, Real) or isinstance(residual, bool):
        raise TypeError(f"residual must be a number, got {residual!r}")
    if not 0 <= residual <= 1:
        raise ValueError(f"residual must be from 0 to 1, got {residual!r}")
    return float(residual)


def _check_heads(heads: Any, num_heads: int) -> None:
    if isinstance(heads, str):
        if heads not in ("mean", "max"):
            raise ValueError(f"heads must be 'mean', 'max' or numbers of heads, got {heads!r}")
        return
    if not isinstance(heads, Sequence) or any(type(head) is not int for head in heads):
        raise TypeError(f"heads must be 'mean', 'max' or numbers of heads, got {heads!r}")
    if not heads or not all(0 <= head < num_heads for head in heads):
        raise ValueError(f"heads must be in 0..{num_heads - 1}, got {list(heads)}")
