"""Fused pretrained encoders as a classifier of clips, with the inputs and outputs of an MBT."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbt_fast.checkpoint.files import read_safetensors
from mbt_fast.checkpoint.pretrained import CONFIG_FILE, WEIGHTS_FILE, write_model
from mbt_fast.checkpoint.shapes import Shape, check_dtypes, check_shapes
from mbt_fast.errors import CheckpointError
from mbt_fast.models.encoders import families_of
from mbt_fast.models.fuse import fuse
from mbt_fast.models.head import mean_of_present
from mbt_fast.models.inputs import check_input, check_names, checked_lengths, without_none
from mbt_fast.models.left_out import check_left_out
from mbt_fast.models.towers import Record, build_tower

STAMP = {"format": "mbt_fast.fused", "version": 1}  # in the config file, beside the fields


@dataclass(frozen=True)
class FusedConfig:
    """What a ``FusedClassifier`` is, as plain data.

    Args:
        towers: Modality to the record of its encoder, see ``mbt_fast.models.towers``.
        input_size: Size of one input per modality, as in ``MBTConfig``.
        fusion_layer: First fused layer, from 0.
        n_bottlenecks: Bottleneck tokens.
        num_classes: Outputs of the classifier.
    """

    towers: Mapping[str, Record]
    input_size: Mapping[str, tuple[int, ...]]
    fusion_layer: int
    n_bottlenecks: int
    num_classes: int

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the streams."""
        return tuple(self.towers)

    @property
    def patch_size(self) -> Mapping[str, tuple[int, ...]]:
        """The whole input: a clip has a modality or lacks it, and no padding is masked."""
        return self.input_size

    @property
    def n_cls(self) -> int:
        """CLS tokens of a stream, as ``ClipTransform`` counts them beside the one patch."""
        return 1

    def sampled_frames(self, modality: str) -> None:
        """Every frame of a video is read."""


class FusedClassifier(nn.Module):
    """Encoders fused through bottleneck tokens, and a linear classifier on top of each.

    A clip's feature in a stream is the mean of its class tokens (CLS, and the distillation token of
    DeiT and AST); where the encoder has none, or norms after pooling, it is the mean of its
    patches, normed as the encoder does. An encoder of images sees every frame of a video: the
    tokens of all frames are one stream, and each frame gets a learned embedding, zero at first.
    Positions of Hugging Face's ViT, DeiT and AST are interpolated to the size of the input.

    Args:
        config: What the model is.
        towers: Its encoders; built with random weights where they are not given.

    Raises:
        ValueError: Encoders do not fit one another, or an input does not fit its encoder.
    """

    def __init__(self, config: FusedConfig, towers: Mapping[str, nn.Module] | None = None) -> None:
        """Fuse the encoders; the classifiers are zero, as in the official code."""
        super().__init__()
        self.config = config
        if towers is None:
            towers = {m: build_tower(record) for m, record in config.towers.items()}
        resizable = any(family.interpolates for family in families_of(towers).values())
        self.fused = fuse(
            towers,
            config.fusion_layer,
            config.n_bottlenecks,
            interpolate_pos_encoding=resizable,
        )
        self.frame_embed = nn.ParameterDict()
        self.n_tokens: dict[str, int] = {}
        width = 0
        for m in config.modalities:
            tokens = self._try(m)
            self.n_tokens[m], width = tokens.shape[1:]
            frames = _frames(self._tower(m), config.input_size[m])
            if frames > 1:
                self.frame_embed[m] = nn.Parameter(tokens.new_zeros(1, frames, 1, width))
                self.n_tokens[m] *= frames
        self.head = nn.ModuleDict({m: _zero(width, config.num_classes) for m in config.modalities})

    def forward(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Classify.

        Args:
            inputs: Per modality ``[B, 3, frames, height, width]`` or ``[B, time, mel]``, of the
                size that the config tells. A modality that is left out is absent for every example;
                in distributed training give zeros and ``lengths`` of 0.
            lengths: Per modality int32 or int64 ``[B]``: 0 means absent for this example. Padding
                inside an example cannot be masked: any other number means all tokens.

        Returns:
            Logits ``[B, num_classes]``, the mean over the modalities that are present.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A name, shape, device or value does not fit.
        """
        logits = self.forward_modalities(inputs, lengths)
        return mean_of_present(logits, list(inputs), without_none(lengths))

    def forward_modalities(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Logits ``[B, num_classes]`` per modality; arguments as in ``forward``."""
        check_names(inputs, self.config.modalities)
        for m in inputs:
            check_input(inputs, m, _input_shape(self.config.input_size[m]), self._weight(m))
        lengths = checked_lengths(lengths, inputs, self.n_tokens.__getitem__)
        check_left_out(self, inputs, {m: self._parameters_of(m) for m in self.config.modalities})
        streams = {m: self._embed(m, inputs[m]) for m in self.config.modalities if m in inputs}
        present = {m: torch.where(n > 0, self.n_tokens[m], 0).int() for m, n in lengths.items()}
        tokens = self.fused.encode(streams, present)
        return {m: self.head[m](_pooled(self._tower(m), x)) for m, x in tokens.items()}

    def set_backend(self, backend: str) -> "FusedClassifier":
        """Choose the backend of the fused attention; returns the model.

        Raises:
            ValueError: ``backend`` is unknown.
        """
        self.fused.set_backend(backend)
        return self

    def save_pretrained(
        self, directory: "str | PathLike[str]", state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Args:
            directory: Where to; made if need be.
            state_dict: Other weights of this model, such as an average.

        Raises:
            CheckpointError: The weights do not fit the model, or are of several dtypes.
            OSError: The directory cannot be written.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        check_shapes(weights, self._shapes(), "the weights do not fit the model")
        parameters = {n: t for n, t in weights.items() if t.is_floating_point()}  # and no indices
        check_dtypes(parameters, "the weights cannot be saved")
        write_model(directory, {**STAMP, **asdict(self.config)}, weights)

    @classmethod
    def from_pretrained(cls, directory: "str | PathLike[str]") -> "FusedClassifier":
        """Load what ``save_pretrained`` wrote; needs the library of each encoder, not the network.

        Raises:
            CheckpointError: A file is malformed, or the weights do not fit.
        """
        directory = Path(directory)
        model = cls(read_fused_config(directory / CONFIG_FILE))
        state_dict = read_safetensors(directory / WEIGHTS_FILE)
        check_shapes(state_dict, model._shapes(), f"{directory}: the weights do not fit the config")
        model.load_state_dict(state_dict, assign=True)
        return model

    def _shapes(self) -> dict[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}

    def _tower(self, modality: str) -> Any:
        return self.fused.towers[modality]

    def _weight(self, modality: str) -> Tensor:
        return next(p for p in self._tower(modality).parameters() if p.is_floating_point())

    def _parameters_of(self, modality: str) -> Iterator[nn.Parameter]:
        """Those that one modality alone uses."""
        yield from self._tower(modality).parameters()
        yield from self.head[modality].parameters()
        if modality in self.frame_embed:
            yield self.frame_embed[modality]

    @torch.no_grad()
    def _try(self, modality: str) -> Tensor:
        """Tokens of one frame, or of a whole input."""
        size, tower = self.config.input_size[modality], self._tower(modality)
        empty = self._weight(modality).new_zeros(1, *_input_shape(size))
        frames = _frames(tower, size)
        try:
            return self.fused.embed(modality, _prepared(tower, empty)[: 1 if frames > 1 else None])
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"input_size.{modality} must fit its encoder, got {list(size)}: {reason}"
            ) from error

    def _embed(self, modality: str, x: Tensor) -> Tensor:
        tokens = self.fused.embed(modality, _prepared(self._tower(modality), x))
        if modality not in self.frame_embed:
            return tokens
        frame_embed = self.frame_embed[modality]
        frames = frame_embed.shape[1]  # not len(x), which an exported program would hold fixed
        return (tokens.unflatten(0, (-1, frames)) + frame_embed).flatten(1, 2)


def read_fused_config(path: Path) -> FusedConfig:
    """The config that ``FusedClassifier.save_pretrained`` wrote.

    Raises:
        CheckpointError: It is malformed.
        OSError: The file cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stamp = {key: values.pop(key, None) for key in STAMP}
        if stamp != STAMP:
            raise CheckpointError(f"{path}: format must be {STAMP}, got {stamp}")
        sizes = {m: tuple(size) for m, size in values.pop("input_size").items()}
        return FusedConfig(input_size=sizes, **values)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a config of mbt_fast: {error}") from error


def _input_shape(size: tuple[int, ...]) -> tuple[int, ...]:
    return (3, *size) if len(size) == 3 else size


def _takes_video(tower: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv3d) for module in tower.modules())


def _frames(tower: nn.Module, size: tuple[int, ...]) -> int:
    """Frames that are embedded one by one; 1 for an encoder of video and for a spectrogram."""
    return size[0] if len(size) == 3 and not _takes_video(tower) else 1


def _prepared(tower: nn.Module, x: Tensor) -> Tensor:
    """A clip as the encoder's library lays it out: frames as a batch, a spectrogram as an image."""
    if x.ndim == 5:
        return x.transpose(1, 2) if _takes_video(tower) else x.transpose(1, 2).flatten(0, 1)
    stem = getattr(getattr(tower, "patch_embed", None), "proj", None)
    if x.ndim == 3 and stem is not None:  # timm; Hugging Face's AST takes [B, time, mel]
        return x.unsqueeze(1).expand(-1, stem.in_channels, -1, -1)
    return x


def _pooled(tower: Any, tokens: Tensor) -> Tensor:
    """The feature ``[B, C]`` of tokens ``[B, N, C]`` after the tower's last norm."""
    pooled = tokens[:, feature_rows(tower)].mean(dim=1)
    return tower.fc_norm(pooled) if _norms_after_pooling(tower) else pooled


def feature_rows(tower: Any) -> slice:
    """The tokens whose mean is a clip's feature: class tokens, or patches."""
    if _norms_after_pooling(tower):
        return slice(getattr(tower, "num_prefix_tokens", 0), None)
    owner = getattr(tower, "embeddings", tower)
    names = ("cls_token", "dist_token", "distillation_token")
    return slice(sum(getattr(owner, name, None) is not None for name in names) or None)


def _norms_after_pooling(tower: Any) -> bool:
    norm = getattr(tower, "fc_norm", None)
    return norm is not None and not isinstance(norm, nn.Identity)


def _zero(width: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
