"""The ops on torch's own ``scaled_dot_product_attention``: runs everywhere, and is the yardstick.

It is used plainly, as a user would write it, and not behind an operator of ours: torch then chooses
its fastest kernel, autograd, ``torch.compile``, export and FLOP counting see through it, and a
comparison with it is fair. Where no row is padding there is no mask, which the flash kernels need.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mbt_fast import reference
from mbt_fast.autograd.attention_lse import attention_lse


def attention(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> Tensor:
    """``reference.attention`` without the log-sum-exp, which torch's function does not return."""
    mask = None if valid is None else reference.attended(valid)[:, None, None, :]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def bottleneck_attention(
    qkv: Sequence[Tensor],
    n_bottlenecks: int,
    lengths: Sequence[Tensor | None],
    update: str | None,
    scale: float,
    return_lse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """One call per stream. The log-sum-exp, if wanted, costs the product of q and k once more."""
    outs, lses = [], []
    for packed, length in zip(qkv, lengths, strict=True):
        valid = reference.valid_rows(length, packed.shape[1], n_bottlenecks)
        clean = reference.drop_padding(packed, valid)
        query, key, value = reference.heads_first(clean)
        out = attention(query, key, value, valid, scale).transpose(1, 2)  # [B, S, H, D]
        outs.append(reference.drop_padding(out, valid))
        if return_lse:
            lses.append(reference.mask_lse(attention_lse(query, key, valid, scale), valid))
    if update == "mean":
        outs = reference.share_slots(outs, n_bottlenecks, lengths)
    return outs, lses
