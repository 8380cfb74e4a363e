"""One attention of a model that has run: its probabilities again, a few rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mbt_fast.ops.softmax import heads_first, scores
from mbt_fast.ops.streams import wide_dtype

TILE = 2**20  # probabilities that exist at a time, but for those of one row

Heads = str | Sequence[int]
Masses = dict[str, Tensor]  # modality -> [B, V, S_m], V distributions over the rows of all streams


@dataclass(frozen=True)
class Attention:
    """Rows of one stream, or of several that are joined, attend to all rows of the same.

    Args:
        modalities: The streams; their rows, one after the other, are the ``K`` keys.
        packed: Computes query, key and value ``[B, K, 3, H, D]``.
        rows: Which of the ``K`` rows are queries.
        valid: bool ``[B, K]``, the rows that take part, or ``None`` for all.
        effect: Gradient of a class's logit with respect to the output ``[B, queries, H, D]``.
    """

    modalities: tuple[str, ...]
    packed: Callable[[], Tensor]
    rows: slice | list[int]
    valid: Tensor | None
    effect: Tensor | None = None

    def with_effect(self, effect: Tensor | None) -> "Attention":
        """The same attention and the gradient ``[B, queries, C]`` of its output."""
        return self if effect is None else replace(self, effect=effect)


def pass_down(attention: Attention, masses: Tensor, heads: Heads) -> Tensor:
    """Pass masses from queries to keys: the product with the matrix of the attention.

    That matrix is the mean of the heads' probabilities, their maximum scaled to rows of sum one, or
    the mean of some. With an ``effect`` it is that of the positive parts of probability times
    gradient (Chefer et al., 2021).

    Args:
        attention: The attention.
        masses: float64 ``[B, V, K]``.
        heads: ``"mean"``, ``"max"`` or the numbers of some heads.

    Returns:
        float64 ``[B, V, K]``.
    """
    asking, passed = masses[..., attention.rows], torch.zeros_like(masses)
    packed = attention.packed()
    wide = packed.to(wide_dtype(packed.dtype))
    with torch.autocast(wide.device.type, enabled=False):
        for tile, matrix in _matrix(attention, wide, heads):
            passed += asking[..., tile] @ matrix.to(masses.dtype)
    return passed


def _matrix(attention: Attention, wide: Tensor, heads: Heads) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the attention's matrix, ``[B, rows, K]``, and which of the queries they are.

    A tile has whole rows, so its softmax needs no statistics of the kernel that ran.
    """
    query, key, value = heads_first(wide)
    query, effect = query[:, :, attention.rows], _heads_first(attention.effect, wide)
    chosen = slice(None) if isinstance(heads, str) else list(heads)
    query, key, value = query[:, chosen], key[:, chosen].contiguous(), value[:, chosen]
    batch, count, queries, head_dim = query.shape
    size = max(1, TILE // (batch * count * key.shape[2]))
    for start in range(0, queries, size):
        tile = slice(start, start + size)
        each = torch.softmax(
            scores(query[:, :, tile], key, attention.valid, head_dim**-0.5), dim=-1
        )
        if effect is not None:
            each = (each * (effect[:, chosen, tile] @ value.mT)).clamp(min=0)
        yield tile, _over_heads(each, heads, scaled=effect is None)


def _over_heads(each: Tensor, heads: Heads, *, scaled: bool) -> Tensor:
    """One matrix ``[B, rows, K]`` of those of the heads, ``[B, H, rows, K]``."""
    if heads != "max":
        return each.mean(dim=1)
    largest = each.amax(dim=1)
    return largest / largest.sum(dim=-1, keepdim=True) if scaled else largest


def _heads_first(effect: Tensor | None, like: Tensor) -> Tensor | None:
    """``[B, queries, C]`` as ``[B, H, queries, D]``."""
    if effect is None:
        return None
    return effect.to(like.dtype).unflatten(-1, like.shape[-2:]).transpose(1, 2)
