"""The Multimodal Bottleneck Transformer (Nagrani et al., 2021, arXiv 2107.00135), exactly."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn

from mbt_fast import checkpoint
from mbt_fast.config import MBTConfig
from mbt_fast.layers import Block, Execution, FusionLayer, StreamEmbedding
from mbt_fast.layers.block import LAYER_NORM_EPS, apply_norm
from mbt_fast.layers.embed import TOKEN_STD
from mbt_fast.layers.fusion_layer import SHARED, Streams, enter_fusion
from mbt_fast.layers.ranges import named_range
from mbt_fast.layers.rows import joint_valid, row_ranges, take_rows
from mbt_fast.models.capture import CapturedMBT, run_modalities
from mbt_fast.models.head import mean_of_present, pooled
from mbt_fast.models.inputs import (
    GivenLengths,
    Inputs,
    check_input,
    check_names,
    checked_lengths,
    without_none,
)
from mbt_fast.models.left_out import check_left_out
from mbt_fast.models.update_order import fuse_in_order, warn_of_no_exchange
from mbt_fast.ops.dispatch import check_name

_MEMORY = {"full": "none", "reduced": "norms", "minimal": "mlp"}  # of set_savings: recompute


class MBT(nn.Module):
    """A transformer for each modality; they exchange information through bottleneck tokens.

    The streams meet in the mean over their slots alone; see ``layers.fusion_layer``, and DESIGN.md
    for streams and slots.

    Args:
        config: Sizes and the kind of fusion.
    """

    def __init__(self, config: MBTConfig) -> None:
        """Build the model with random weights, drawn as the official code draws them."""
        super().__init__()
        if config.exchanges_nothing:
            warn_of_no_exchange(config.fusion_layer)
        self.config = config
        self.embed = nn.ModuleDict({m: _embedding(config, m) for m in config.modalities})
        self.blocks = nn.ModuleList(_layer(config, index) for index in range(config.num_layers))
        slots = torch.empty(1, config.n_slots, config.hidden_size)
        self.bottleneck_tokens = nn.Parameter(slots) if config.n_slots else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)  # shared by the modalities
        self.head = nn.Linear(config.hidden_size, config.num_classes)  # likewise
        self._execution = Execution()
        self.reset_parameters()

    def forward(self, inputs: Inputs, lengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """Classify.

        Args:
            inputs: Per modality ``[B, 3, frames, height, width]`` or ``[B, time, mel]``, in the
                dtype of the weights (any float type under autocast). A modality that is left out is
                absent for every example; in distributed training give zeros and ``lengths`` of 0.
            lengths: Per modality int32 or int64 ``[B]``: valid own tokens, any CLS included; 0
                means absent for this example. A modality without an entry, or with ``None``, has no
                padding.

        Returns:
            Logits ``[B, num_classes]``, the mean over the modalities that are present; zero for an
            example without any.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A name, shape, device or value does not fit the configuration.
        """
        logits = self.forward_modalities(inputs, lengths)
        return mean_of_present(logits, list(inputs), without_none(lengths))

    def forward_modalities(
        self, inputs: Inputs, lengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Logits ``[B, num_classes]`` per modality: what the training loss is made of.

        The official loss is the mean of the modalities' losses, not the loss of the mean logits.
        With ``classifier="gap"`` there is one entry, ``"shared"``, for all modalities.
        Arguments as in ``forward``; logits of examples for which the modality is absent mean
        nothing, and no gradient should be sent through them.
        """
        features = self.forward_features(inputs, lengths)
        with named_range("head"):
            return {modality: self.head(cls) for modality, cls in features.items()}

    def forward_features(
        self, inputs: Inputs, lengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What the head reads, ``[B, C]`` per modality: the CLS token after the final LayerNorm.

        With ``classifier="gap_per_modality"`` it is the mean over the modality's valid own tokens
        after that norm; with ``"gap"`` the mean over those of all modalities, named ``"shared"``.
        """
        lengths = self.check_inputs(inputs, lengths)
        check_left_out(self, inputs, {m: self._parameters_of(m) for m in self.embed})
        given = [m for m in self.config.modalities if m in inputs]
        streams = run_modalities(partial(self._below_fusion, inputs, lengths), given)
        tokens = self._fuse(streams, lengths)
        with named_range("norm"):
            features = {modality: apply_norm(self.norm, rows) for modality, rows in tokens.items()}
        return pooled(features, lengths, self.config.classifier)

    def capture(self, inputs: Inputs, lengths: Mapping[str, Tensor] | None = None) -> CapturedMBT:
        """Record the forward as a CUDA graph, for inference that does not wait for the host.

        Modalities are parallel branches of the graph below the fusion layer. Further shapes are
        recorded when they are first seen. On a CPU there is nothing to record, and calls go to the
        model itself.

        Args:
            inputs: An example of the inputs to come.
            lengths: Likewise.

        Returns:
            What is called like the model, without gradients.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A name, shape, device or value does not fit the configuration.
            RuntimeError: The model is in training mode.

        Example:
            >>> from mbt_fast import create_model
            >>> model = create_model("mbt_tiny").eval()
            >>> clip = {"rgb": torch.randn(1, 3, 2, 32, 32), "spectrogram": torch.randn(1, 64, 32)}
            >>> captured = model.capture(clip)
            >>> torch.equal(captured(clip), model(clip))
            True
        """
        captured = CapturedMBT(self)
        captured(inputs, lengths)
        return captured

    def reset_parameters(self) -> None:
        """Draw all weights anew, as the official code draws them; the classifier is zero.

        For a model that was built on the meta device, once it has memory: call it on the model,
        which resets every module below. Sharded parameters (FSDP2) are drawn shard by shard.

        Example:
            >>> from mbt_fast import create_model
            >>> with torch.device("meta"):
            ...     model = create_model("mbt_tiny")
            >>> model.to_empty(device="cpu").reset_parameters()
        """
        for modality in self.embed:
            self.embedding(modality).reset_parameters()
        for layer in self.layers:
            layer.reset_parameters()
        if self.bottleneck_tokens is not None:
            nn.init.normal_(self.bottleneck_tokens, std=TOKEN_STD)
        self.norm.reset_parameters()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def set_backend(self, backend: str) -> "MBT":
        """Choose the backend of every op in the model; returns the model.

        The few queries of ``cls_only`` are for kernels too few: with a backend that has no
        ``dense_attention``, ``"auto"`` runs them.

        Raises:
            ValueError: ``backend`` is neither ``"auto"`` nor a name of ``dispatch.BACKENDS``.
        """
        check_name(backend)
        for layer in self.layers:
            layer.set_backend(backend)
        return self

    def set_execution(self, **changes: Any) -> "MBT":
        """Choose what is neither computed nor kept, none of which changes a result.

        Args:
            **changes: Fields of ``mbt_fast.layers.Execution`` that differ from now. By default
                dropped branches are skipped, and outputs of LayerNorm and GELU are recomputed;
                ``cls_only=True`` makes the last layer cheaper, about a twelfth of the model.

        Returns:
            The model.

        Raises:
            TypeError: No such field, or a value of the wrong type.
            ValueError: ``recompute`` is unknown, or ``cls_only`` is asked of a head that reads
                all tokens.
        """
        execution = replace(self._execution, **changes)
        if execution.cls_only and not self.config.n_cls:
            raise ValueError(
                f"cls_only must be False for classifier={self.config.classifier!r}, got True"
            )
        self._execution = execution
        for layer in self.layers:
            layer.set_execution(self._execution)
        return self

    @property
    def execution(self) -> Execution:
        """What the model neither computes nor keeps."""
        return self._execution

    def set_savings(self, *, memory: str | None = None, **changes: Any) -> "MBT":
        """Deprecated name of ``set_execution``.

        Args:
            memory: ``"full"``, ``"reduced"`` or ``"minimal"``, which ``recompute`` calls
                ``"none"``, ``"norms"`` and ``"mlp"``.
            **changes: As in ``set_execution``.

        Raises:
            TypeError: As in ``set_execution``.
            ValueError: ``memory`` is none of the three.
        """
        message = "set_savings is deprecated; use set_execution, with recompute= instead of memory="
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        if memory is not None:
            if memory not in _MEMORY:
                raise ValueError(f"memory must be one of {', '.join(_MEMORY)}, got {memory!r}")
            changes["recompute"] = _MEMORY[memory]
        return self.set_execution(**changes)

    @property
    def layers(self) -> list[FusionLayer]:
        """The layers, first to last."""
        return cast(list[FusionLayer], list(self.blocks))

    def embedding(self, modality: str) -> StreamEmbedding:
        """The embedding of a modality's input."""
        return cast(StreamEmbedding, self.embed[modality])

    def check_inputs(self, inputs: Inputs, lengths: GivenLengths | None) -> dict[str, Tensor]:
        """Refuse what ``forward`` refuses; return the lengths that are given."""
        check_names(inputs, self.config.modalities)
        for m in inputs:
            check_input(inputs, m, self.embedding(m).input_shape, self._narrowest_weight(m))
        return checked_lengths(lengths, inputs, self.config.n_tokens)

    def save_pretrained(self, directory: str | PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` to ``directory``."""
        checkpoint.save_pretrained(directory, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str], **overrides: Any) -> "MBT":
        """Load what ``save_pretrained`` or ``mbt-fast convert`` wrote.

        Args:
            directory: Holds ``config.json`` and ``model.safetensors``.
            **overrides: Fields of ``MBTConfig`` that differ from the stored ones. With another
                ``input_size`` the position embeddings are resized.

        Raises:
            mbt_fast.errors.CheckpointError: Not readable, or weights that do not fit; names which.
        """
        config, state_dict = checkpoint.load_pretrained(directory, **overrides)
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state_dict, assign=True)
        return model

    def _below_fusion(
        self, inputs: Inputs, lengths: dict[str, Tensor], modalities: Sequence[str]
    ) -> Streams:
        """Embed some modalities, and pass them through the layers in which they do not meet."""
        streams = {}
        for m in modalities:
            with named_range(f"embed / {m}"):
                streams[m] = self.embedding(m)(inputs[m], lengths.get(m))
        lengths = {m: length for m, length in lengths.items() if m in modalities}
        for layer in self.layers[: self._first_fused_layer()]:
            streams = layer(streams, lengths, rows=self._rows_of(layer, [0]))
        return streams

    def _fuse(self, streams: Streams, lengths: dict[str, Tensor]) -> Streams:
        """Pass the streams through the fused layers; return what the head reads of each.

        That is the CLS token ``[B, C]`` or, where the head pools, all own tokens ``[B, N, C]``.
        """
        config = self.config
        own = {modality: x.shape[1] for modality, x in streams.items()}
        fused = self.layers[self._first_fused_layer() :]
        vanilla = config.fusion == "vanilla" and len(config.modalities) > 1
        if fused and vanilla and config.share_encoder:
            return self._encode_jointly(streams, fused, lengths)
        tokens = self.bottleneck_tokens if fused else None
        if tokens is not None and config.update_order:
            rows_of = partial(self._rows_of, cls=[0])
            streams = fuse_in_order(fused, streams, tokens, config.update_order, lengths, rows_of)
            fused = []
        elif tokens is not None:
            streams = enter_fusion(streams, tokens)
        for layer in fused:
            rows = self._rows_of(layer, [0])
            streams = layer(streams, lengths, n_slots=config.n_slots, pairwise=vanilla, rows=rows)
        if not config.n_cls:
            return {modality: x[:, : own[modality]] for modality, x in streams.items()}
        return {modality: x[:, 0] for modality, x in streams.items()}

    def _rows_of(self, layer: FusionLayer, cls: list[int]) -> list[int] | None:
        """The rows that ``layer`` computes: ``cls``, the CLS rows, or ``None`` for all.

        Under dropout the last layer is computed in full: its masks are drawn for every element.
        """
        dropout = self.training and self.config.dropout > 0
        last = layer is self.blocks[-1]
        return cls if last and self._execution.cls_only and not dropout else None

    def _first_fused_layer(self) -> int:
        """The official code runs bottleneck fusion unimodally at test time if so configured.

        Vanilla fusion takes no notice of that setting there, nor here.
        """
        config = self.config
        fuses = self.training or config.test_with_bottlenecks or config.fusion == "vanilla"
        return config.fusion_layer if fuses else config.num_layers

    def _encode_jointly(
        self, streams: Streams, fused: list[FusionLayer], lengths: dict[str, Tensor]
    ) -> Streams:
        """Vanilla fusion with one set of weights: the streams are joined once and stay joined."""
        valid = joint_valid(streams, lengths)
        ranges = row_ranges(streams)
        cls = [own.start for own in ranges.values()]
        joined = {SHARED: torch.cat(list(streams.values()), dim=1)}
        for layer in fused:
            rows = self._rows_of(layer, cls)
            joined = layer(joined, {}, valid=valid, rows=rows)
        if not self.config.n_cls:
            return {modality: joined[SHARED][:, own] for modality, own in ranges.items()}
        tokens = joined[SHARED] if rows else take_rows(joined[SHARED], cls)
        return dict(zip(streams, tokens.unbind(1), strict=True))

    def _parameters_of(self, modality: str) -> Iterator[nn.Parameter]:
        """Those that one modality alone uses."""
        yield from self.embed[modality].parameters()
        for layer in self.layers:
            if modality in layer:
                yield from layer[modality].parameters()

    def _narrowest_weight(self, modality: str) -> Tensor:
        """Norms may be kept in a wider type than the rest."""
        weight, positions = self.norm.weight, self.embedding(modality).pos_embed
        return positions if positions.dtype.itemsize < weight.dtype.itemsize else weight


def _embedding(config: MBTConfig, modality: str) -> StreamEmbedding:
    return StreamEmbedding(
        config.input_size[modality],
        config.patch_size[modality],
        config.n_tokens(modality),
        config.hidden_size,
        n_cls=config.n_cls,
        frames=config.sampled_frames(modality),
    )


def _layer(config: MBTConfig, index: int) -> FusionLayer:
    names = (SHARED,) if config.share_encoder else config.modalities
    return FusionLayer(
        {
            name: Block(
                config.hidden_size,
                config.num_heads,
                config.mlp_dim,
                config.drop_rate(index),
                config.dropout,
            )
            for name in names
        },
        name=f"layer {index}",
    )
