"""What a user could write instead of ``bottleneck_attention``; each takes packed streams and slots.

Vanilla pairwise attention computes something else, attention over all streams joined: it is what
bottlenecks replace, and is here for its cost.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import mbt_fast

Peer = Callable[[Sequence[Tensor], int], Sequence[Tensor]]


def ours(backend: str) -> Peer:
    """``bottleneck_attention`` on one backend."""

    def run(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
        return mbt_fast.bottleneck_attention(streams, slots, backend=backend)

    return run


def sdpa(kernel: SDPBackend | None, *, contiguous: bool = False) -> Peer:
    """One call of torch's attention per stream, on views of packed qkv or on copies."""

    def run(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
        if kernel is None:
            return [_attend(stream, contiguous) for stream in streams]
        with sdpa_kernel(kernel):
            return [_attend(stream, contiguous) for stream in streams]

    return run


def _attend(stream: Tensor, contiguous: bool) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in stream.unbind(2))
    if contiguous:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def vanilla(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
    """Pairwise attention: the streams without their slots, joined."""
    own = [stream[:, : stream.shape[1] - slots] for stream in streams]
    return [_attend(torch.cat(own, dim=1), contiguous=False)]


def flex(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
    """FlexAttention, compiled, over the joined rows with a block mask that keeps streams apart."""
    from torch.nn.attention.flex_attention import create_block_mask

    sizes = tuple(stream.shape[1] for stream in streams)
    device = streams[0].device
    key = (sizes, device)
    if key not in _MASKS:
        owner = torch.repeat_interleave(
            torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device)
        )

        def same_stream(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return owner[q] == owner[k]

        rows = sum(sizes)
        _MASKS[key] = create_block_mask(same_stream, None, None, rows, rows, device=str(device))
    joined = torch.cat(list(streams), dim=1)
    query, key_rows, value = (part.transpose(1, 2) for part in joined.unbind(2))
    out = _compiled_flex()(query, key_rows, value, block_mask=_MASKS[key])
    return out.transpose(1, 2).split(sizes, dim=1)


_MASKS: dict[tuple[tuple[int, ...], torch.device], object] = {}
_FLEX: list[Callable[..., Tensor]] = []


def _compiled_flex() -> Callable[..., Tensor]:
    if not _FLEX:
        from torch.nn.attention.flex_attention import flex_attention

        _FLEX.append(torch.compile(flex_attention, dynamic=False))
    return _FLEX[0]


def varlen(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
    """Variable-length attention of torch over the rows of all streams and examples, packed."""
    from torch.nn.attention.varlen import varlen_attn

    batch, _, _, heads, head_dim = streams[0].shape
    packed = torch.cat([stream.flatten(0, 1) for stream in streams])
    query, key, value = packed.unbind(1)
    sizes = [stream.shape[1] for stream in streams for _ in range(batch)]
    ends = torch.tensor([0, *sizes], device=packed.device).cumsum(0).to(torch.int32)
    longest = max(sizes)
    out = varlen_attn(query, key, value, ends, ends, longest, longest)
    out = out[0] if isinstance(out, tuple) else out
    parts = out.split([batch * stream.shape[1] for stream in streams])
    return [
        part.view(batch, stream.shape[1], heads, head_dim)
        for part, stream in zip(parts, streams, strict=True)
    ]


def xformers(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
    """Attention of xformers, with a block-diagonal mask over the packed rows."""
    from xformers.ops import fmha, memory_efficient_attention

    batch, _, _, heads, head_dim = streams[0].shape
    packed = torch.cat([stream.flatten(0, 1) for stream in streams])[None]
    query, key, value = packed.unbind(2)
    sizes = [stream.shape[1] for stream in streams for _ in range(batch)]
    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(sizes)
    out = memory_efficient_attention(query, key, value, attn_bias=mask)[0]
    parts = out.split([batch * stream.shape[1] for stream in streams])
    return [
        part.view(batch, stream.shape[1], heads, head_dim)
        for part, stream in zip(parts, streams, strict=True)
    ]


PEERS: dict[str, Peer] = {
    "mbt_fast triton": ours("triton"),
    "mbt_fast auto": ours("auto"),
    "sdpa default": sdpa(None),
    "sdpa cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa flash, copies": sdpa(SDPBackend.FLASH_ATTENTION, contiguous=True),
    "sdpa cudnn, copies": sdpa(SDPBackend.CUDNN_ATTENTION, contiguous=True),
    "varlen_attn": varlen,
    "flex_attention": flex,
    "xformers": xformers,
    "vanilla pairwise": vanilla,
}
