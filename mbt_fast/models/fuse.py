"""Pretrained encoders of other libraries, fused through bottleneck tokens, their weights shared."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mbt_fast.config import check_modalities
from mbt_fast.layers.embed import TOKEN_STD
from mbt_fast.layers.fusion_layer import Lengths, Streams, enter_fusion
from mbt_fast.models.encoders import (
    Family,
    Layer,
    check_training,
    families_of,
    warn_of_hooks,
)
from mbt_fast.models.inputs import check_names, checked_lengths
from mbt_fast.models.left_out import check_left_out
from mbt_fast.models.update_order import warn_of_no_exchange
from mbt_fast.ops.bottleneck_attention import attend
from mbt_fast.ops.dispatch import check_name
from mbt_fast.ops.streams import drop_padding, valid_rows, write_mean_slots


def fuse(
    towers: Mapping[str, nn.Module],
    fusion_layer: int,
    n_bottlenecks: int = 4,
    *,
    interpolate_pos_encoding: bool = False,
) -> "FusedTowers":
    """Fuse pretrained encoders through bottleneck tokens, as MBT fuses its own (Eq. 7-9).

    Equal, for layer ``l`` of each tower ``m`` and its stream ``x_m``, to::

        if l == fusion_layer:
            x_m = cat([x_m, bottleneck_tokens])
        x_m = layer_m(x_m)
        if l >= fusion_layer:
            slots of every x_m = mean over the present m of the slots of x_m

    The towers are not copied: training the fused model trains them. They are recognised by their
    attributes: timm's ``VisionTransformer``, the ViT, DeiT, AST and VideoMAE of Hugging Face, and
    ``torch.nn.TransformerEncoder(norm_first=True)``. From the fusion layer on the parts of a layer
    are called around our attention: activation, eps, biases, layer scale, dropout and stochastic
    depth are the tower's own. Hooks on the layer itself or its attention, of which the first call
    warns, wrappers around it, and activation checkpointing that the tower brings are passed over.

    Args:
        towers: Modality to encoder, all of one depth, width and number of heads. Each layer is
            tried on five random tokens, but for towers on the meta device.
        fusion_layer: 0-based first fused layer; the number of layers for none (late fusion). The
            last layer alone exchanges nothing, for nobody reads the bottleneck tokens after it.
        n_bottlenecks: ``P >= 0``, bottleneck tokens.
        interpolate_pos_encoding: Let Hugging Face towers take images or spectrograms of another
            size than they were trained on, by interpolating their positions. A timm tower is built
            with ``dynamic_img_size=True`` instead.

    Returns:
        The model, with new bottleneck tokens drawn from N(0, 0.02^2) as in the official code.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Something in a tower does not fit, such as post-norm or rotary positions: the
            message names the first such thing. Or a number is out of range. Attention dropout is
            refused when a fused layer is trained with it.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(
        ...     64, nhead=4, dropout=0.0, norm_first=True, batch_first=True)
        >>> towers = {
        ...     modality: torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        ...     for modality in ("rgb", "spectrogram")}
        >>> model = fuse(towers, fusion_layer=8, n_bottlenecks=4)
        >>> clip = {"rgb": torch.randn(2, 50, 64), "spectrogram": torch.randn(2, 25, 64)}
        >>> {modality: tuple(tokens.shape) for modality, tokens in model(clip).items()}
        {'rgb': (2, 50, 64), 'spectrogram': (2, 25, 64)}
    """
    return FusedTowers(
        towers, fusion_layer, n_bottlenecks, interpolate_pos_encoding=interpolate_pos_encoding
    )


class FusedTowers(nn.Module):
    """What ``fuse`` returns.

    Attributes:
        towers: The given encoders themselves, by modality.
        bottleneck_tokens: Parameter ``[1, P, C]``; ``None`` where nothing can be exchanged, for
            want of bottlenecks, of fused layers or of a second tower.
    """

    def __init__(
        self,
        towers: Mapping[str, nn.Module],
        fusion_layer: int,
        n_bottlenecks: int,
        *,
        interpolate_pos_encoding: bool = False,
    ) -> None:
        """Arguments are those of ``fuse``."""
        super().__init__()
        if not isinstance(towers, Mapping):
            raise TypeError(f"towers must be a mapping from modality to module, got {towers!r}")
        check_modalities(tuple(towers))
        self._families = families_of(towers)
        self.towers = nn.ModuleDict(towers)
        self.num_layers = len(self.layers_of(next(iter(towers))))
        _check_integer("fusion_layer", fusion_layer, self.num_layers)
        _check_integer("n_bottlenecks", n_bottlenecks)
        self.fusion_layer = fusion_layer
        self._check_interpolation(interpolate_pos_encoding)
        self.interpolate_pos_encoding = interpolate_pos_encoding
        exchanges = len(towers) > 1 and fusion_layer < self.num_layers
        self.n_slots = n_bottlenecks if exchanges else 0
        if self.n_slots and fusion_layer == self.num_layers - 1:
            warn_of_no_exchange(fusion_layer)
        self.bottleneck_tokens = self._draw_tokens() if self.n_slots else None
        self._backend = "auto"
        self._looked_at: set[int] = set()  # layers of which hooks that are passed over were told

    def forward(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Encode.

        Below the fusion layer a tower without padding runs its own layers, and gives its own
        numbers bit for bit.

        Args:
            inputs: Per modality what its tower takes: images or spectrograms, and for
                ``torch.nn.TransformerEncoder`` tokens ``[B, N, C]``. A modality that is left out is
                absent for every example; in distributed training give it, and ``lengths`` of 0.
            lengths: Per modality int32 or int64 ``[B]``: how many of the tower's tokens are valid,
                CLS and its like included; 0 means absent for this example. A modality without an
                entry, or with ``None``, has no padding.

        Returns:
            Tokens ``[B, N, C]`` per modality after the tower's last norm, which is what its head
            takes: in timm ``tower.forward_head``, in Hugging Face the pooler or classifier. Rows of
            padding and of absent examples are zero.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A name, shape, device or value does not fit.
        """
        streams = self.embed_all(inputs)
        check_left_out(self, streams, {m: t.parameters() for m, t in self.towers.items()})
        return self.encode(streams, lengths)

    def embed(self, modality: str, x: Tensor) -> Tensor:
        """The tokens ``[B, N, C]`` that the first layer of a tower takes, for its input ``x``.

        Raises:
            TypeError: The input is no tensor.
            ValueError: The tower embeds it as something else than tokens.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs[{modality!r}] must be a tensor, got {type(x).__name__}")
        family = self._families[modality]
        embed = family.embed_resized if self.interpolate_pos_encoding else family.embed
        tokens = embed(self.towers[modality], x)
        if not isinstance(tokens, Tensor) or tokens.ndim != 3:
            got = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(
                f"towers[{modality!r}] must embed its input as tokens [B, N, C], got {got}"
            )
        return tokens

    def encode(
        self, streams: Streams, lengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Encode tokens ``[B, N, C]`` that are embedded already; otherwise as ``forward``."""
        lengths = checked_lengths(lengths, streams, lambda m: streams[m].shape[1])
        streams = {m: _drop_padding(x, lengths.get(m)) for m, x in streams.items()}
        first = self.fusion_layer if self.n_slots else self.num_layers
        for index in range(first):
            streams = {m: self._layer_alone(index, m, x, lengths) for m, x in streams.items()}
        if self.bottleneck_tokens is not None:
            streams = enter_fusion(streams, self.bottleneck_tokens)
        for index in range(first, self.num_layers):
            streams = self._layer_apart(index, streams, lengths, self.n_slots)
        return {m: self._leave(m, x, lengths.get(m)) for m, x in streams.items()}

    def family_of(self, modality: str) -> Family:
        """How the parts of a tower are called."""
        return self._families[modality]

    @property
    def chosen_backend(self) -> str:
        """Who runs our attention."""
        return self._backend

    def set_backend(self, backend: str) -> "FusedTowers":
        """Choose the backend of our attention; returns the model.

        Raises:
            ValueError: ``backend`` is neither ``"auto"`` nor a name of ``dispatch.BACKENDS``.
        """
        check_name(backend)
        self._backend = backend
        return self

    def extra_repr(self) -> str:
        """Show what no submodule shows."""
        return f"fusion_layer={self.fusion_layer}, n_slots={self.n_slots}"

    def layers_of(self, modality: str) -> Sequence[Layer]:
        """The layers of a tower, first to last."""
        return self._families[modality].layers(self.towers[modality])

    def _draw_tokens(self) -> nn.Parameter:
        modality = next(iter(self.towers))
        layer = self.layers_of(modality)[0]
        weight = next(p for p in layer.parameters() if p.is_floating_point())
        tokens = weight.new_empty(1, self.n_slots, self._families[modality].width(layer))
        return nn.Parameter(nn.init.normal_(tokens, std=TOKEN_STD))

    def _check_interpolation(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"interpolate_pos_encoding must be a bool, got {value!r}")
        if value and not any(family.interpolates for family in self._families.values()):
            raise ValueError(
                "interpolate_pos_encoding must be False without a Hugging Face tower, got True"
            )

    def embed_all(self, inputs: Mapping[str, Tensor]) -> Streams:
        """The tokens of each given modality; arguments are refused as in ``forward``."""
        check_names(inputs, tuple(self.towers))
        streams = {m: self.embed(m, inputs[m]) for m in self.towers if m in inputs}
        first = next(iter(streams))
        batch = streams[first].shape[0]  # not len, which an exported program would hold fixed
        for modality, x in streams.items():
            if x.shape[0] != batch:
                raise ValueError(
                    f"inputs[{modality!r}] must have batch size {batch} like "
                    f"inputs[{first!r}], got {x.shape[0]}"
                )
        return streams

    def _layer_alone(self, index: int, modality: str, x: Tensor, lengths: Lengths) -> Tensor:
        """A layer of one tower; taken apart for padding only, which its own forward cannot mask."""
        if modality in lengths:
            return self._layer_apart(index, {modality: x}, lengths, 0)[modality]
        return self._families[modality].whole(self.layers_of(modality)[index], x)

    def _layer_apart(self, index: int, streams: Streams, lengths: Lengths, n_slots: int) -> Streams:
        """The same layer of several towers: all attentions in one call, then the shared update."""
        layers = {m: self.layers_of(m)[index] for m in streams}
        is_first_call = index not in self._looked_at and not torch.compiler.is_compiling()
        for m, layer in layers.items():
            where = f"towers[{m!r}].{self._families[m].stack}[{index}]"
            check_training(where, layer, self._families[m])
            if is_first_call:
                warn_of_hooks(where, layer, self._families[m])
        if is_first_call:
            self._looked_at.add(index)
        padding = [lengths.get(modality) for modality in streams]
        heads, _ = attend(
            [self._families[m].packed(layers[m], x) for m, x in streams.items()],
            n_slots,
            padding,
            backend=self._backend,
        )
        after = {
            m: self._families[m].finish(layers[m], x, out)
            for (m, x), out in zip(streams.items(), heads, strict=True)
        }
        if n_slots and len(after) > 1:
            write_mean_slots(list(after.values()), n_slots, padding)
        return after

    def _leave(self, modality: str, x: Tensor, length: Tensor | None) -> Tensor:
        own = x[:, : x.shape[1] - self.n_slots]
        return _drop_padding(self._families[modality].norm(self.towers[modality], own), length)


def _drop_padding(x: Tensor, length: Tensor | None) -> Tensor:
    return drop_padding(x, valid_rows(length, x.shape[1], 0))


def _check_integer(name: str, value: int, most: int | None = None) -> None:
    if type(value) is not int:
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 0 or (most is not None and value > most):
        bound = "at least 0" if most is None else f"in 0..{most}, the layers"
        raise ValueError(f"{name} must be {bound}, got {value}")
