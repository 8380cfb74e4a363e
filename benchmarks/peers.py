"""What a user could write instead of ``bottleneck_attention``; named in ``benchmarks.registry``.

Each takes packed streams ``[B, S, 3, H, D]`` and the number of slots, unless it is prepared with
something else.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import mbt_fast

Attend = Callable[[Sequence[Tensor], int], Sequence[Tensor]]


def packed(streams: Sequence[Tensor]) -> list[Tensor]:
    """As they are."""
    return list(streams)


def split(streams: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous query, key and value of every stream, one after the other."""
    parts = [part for stream in streams for part in stream.unbind(2)]
    return [part.transpose(1, 2).contiguous() for part in parts]


class Peer(NamedTuple):
    """One way to attend, how its inputs are prepared before, and whether it joins the streams."""

    attend: Attend
    prepare: Callable[[Sequence[Tensor]], list[Tensor]] = packed
    joins: bool = False


def ours(backend: str) -> Attend:
    """``bottleneck_attention`` on one backend."""

    def run(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
        return mbt_fast.bottleneck_attention(streams, slots, backend=backend)

    return run


def sdpa(kernel: SDPBackend | None = None, *, copies: bool = False) -> Attend:
    """One call of torch's attention per stream, on views of packed qkv or on copies of them."""

    def run(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
        if kernel is None:
            return [_attend(stream, copies) for stream in streams]
        with sdpa_kernel(kernel):
            return [_attend(stream, copies) for stream in streams]

    return run


def _attend(stream: Tensor, copies: bool = False) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in stream.unbind(2))
    if copies:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def sdpa_of_split(leaves: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
    """The same, given contiguous query, key and value."""
    triples = zip(leaves[::3], leaves[1::3], leaves[2::3], strict=True)
    return [scaled_dot_product_attention(q, k, v) for q, k, v in triples]


def vanilla(streams: Sequence[Tensor], slots: int) -> Sequence[Tensor]:
    """Pairwise attention: the streams without their slots, joined."""
    own = [stream[:, : stream.shape[1] - slots] for stream in streams]
    return [_attend(torch.cat(own, dim=1))]


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


def attention_peers(device: torch.device) -> dict[str, Peer]:
    """Those that are for this type of device."""
    views = {"sdpa": Peer(sdpa()), "sdpa, contiguous": Peer(sdpa_of_split, split)}
    if device.type == "cpu":
        return {"ours, cpu": Peer(ours("cpu")), **views}
    cudnn, flash = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
    return {
        "ours": Peer(ours("auto")),
        "ours, cuda": Peer(ours("cuda")),
        "ours, triton": Peer(ours("triton")),
        **views,
        "sdpa cudnn": Peer(sdpa(cudnn)),
        "sdpa flash": Peer(sdpa(flash)),
        "sdpa cudnn, copies": Peer(sdpa(cudnn, copies=True)),
        "sdpa flash, copies": Peer(sdpa(flash, copies=True)),
        "varlen_attn": Peer(varlen),
        "flex_attention": Peer(flex),
        "xformers": Peer(xformers),
        "vanilla pairwise": Peer(vanilla, joins=True),
    }
