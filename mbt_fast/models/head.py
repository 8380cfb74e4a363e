"""What the head reads of the streams: CLS tokens, or means over own tokens (``gap``).

Bottleneck tokens and padding take no part in a mean. Sums are taken in float32 or wider, as by the
official ``jnp.mean``. Sources: ``scenic/projects/mbt/model.py``, and for a mean per modality
``scenic/projects/av_mae/mbt.py``.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from mbt_fast.layers.fusion_layer import SHARED, Streams
from mbt_fast.layers.rows import joint_valid
from mbt_fast.ops.streams import drop_padding, expand, valid_rows, wide_dtype


def pooled(tokens: Streams, lengths: Mapping[str, Tensor], classifier: str) -> Streams:
    """What the head is applied to, ``[B, C]``.

    Args:
        tokens: Of each modality the CLS token ``[B, C]`` or, for a mean, own tokens ``[B, N, C]``.
        lengths: Per modality int ``[B]``, how many of them are valid; without an entry all are.
        classifier: As in ``MBTConfig``.

    Returns:
        One entry per modality; for ``"gap"`` one in all, named ``"shared"``, in which a modality
        with more tokens weighs more. A mean over no token is zero.
    """
    if classifier == "token":
        return tokens
    if classifier == "gap":
        return {SHARED: _mean(torch.cat(list(tokens.values()), 1), joint_valid(tokens, lengths))}
    valid = {m: valid_rows(lengths.get(m), x.shape[1], 0) for m, x in tokens.items()}
    return {m: _mean(x, valid[m]) for m, x in tokens.items()}


def mean_of_present(logits: Streams, given: Sequence[str], lengths: Mapping[str, Tensor]) -> Tensor:
    """Mean of the logits over the modalities that an example has; arguments as in ``presence``.

    Returns:
        ``[B, K]``; zero for an example without any modality.
    """
    if not lengths:
        return torch.stack(list(logits.values())).mean(dim=0)
    present = presence(logits, given, lengths)
    total = torch.stack([torch.where(present[m], logits[m], 0) for m in logits]).sum(dim=0)
    return total / torch.stack(list(present.values())).sum(dim=0).clamp(min=1)


def presence(
    logits: Streams, given: Sequence[str], lengths: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Which examples have logits that mean something, bool ``[B, 1]``.

    Args:
        logits: Per modality, or one entry ``"shared"``, which means something if any is present.
        given: The modalities of the call.
        lengths: Per modality int ``[B]``; 0 means absent, no entry present.
    """
    present = {}
    for name, value in logits.items():
        members = given if name == SHARED else [name]
        if all(m in lengths for m in members):
            here = reduce(or_, (lengths[m] > 0 for m in members))
        else:
            here = value.new_ones(value.shape[0], dtype=torch.bool)
        present[name] = expand(here, value)
    return present


def _mean(rows: Tensor, valid: Tensor | None) -> Tensor:
    """Over the valid rows of ``[B, N, C]``; all without ``valid``, bool ``[B, N]``."""
    if valid is None:
        return rows.mean(dim=1)
    total = drop_padding(rows, valid).sum(dim=1, dtype=wide_dtype(rows.dtype))
    return (total / valid.sum(dim=1, keepdim=True).clamp(min=1)).to(rows.dtype)
