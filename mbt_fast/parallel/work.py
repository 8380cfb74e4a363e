"""What a model and a recipe ask of a machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number


@dataclass(frozen=True)
class Stream:
    """What one modality alone takes.

    Args:
        parameters: Of its own.
        forward: FLOPs of a clip's forward pass.
        both: FLOPs of a clip's forward and backward pass.
        kept: Bytes of a clip that the forward pass keeps.
    """

    parameters: int
    forward: int
    both: int
    kept: int


@dataclass(frozen=True)
class Work:
    """What a model takes.

    Args:
        parameters: All.
        forward: FLOPs of a clip's forward pass.
        both: FLOPs of a clip's forward and backward pass.
        kept: Bytes of a clip that the forward pass keeps; 0 if that is not known.
        fixed: Bytes that it keeps whatever the number of clips: weights in the dtype of autocast.
        units: Parameters of each part that FSDP2 gathers as one, the root last.
        streams: What each modality takes; empty if they cannot be computed apart.
        exchanges: Layers after which modalities that are computed apart exchange their slots.
        slots: Numbers that they exchange for each clip.
        shares: Parameters that a rank of a sharded model holds, by the size of the world, where
            that was counted; elsewhere equal shares are taken.
    """

    parameters: int
    forward: int
    both: int
    kept: int
    fixed: int
    units: tuple[int, ...]
    streams: Mapping[str, Stream] = field(default_factory=dict)
    exchanges: int = 0
    slots: int = 0
    shares: Mapping[int, int] = field(default_factory=dict)

    @property
    def shared(self) -> int:
        """Parameters that no modality has alone."""
        return self.parameters - sum(stream.parameters for stream in self.streams.values())


@dataclass(frozen=True)
class Settings:
    """What a recipe asks of a step.

    Args:
        batch_size: Clips of a step, over all ranks.
        micro_batch: Clips at a time; ``None`` for all of a rank's.
        virtual_devices: Groups whose gradients are clipped one by one; 0 for none.
        dtype: Of autocast.
        states: Numbers that the optimizer keeps for each weight.
        passes: Times that the update reads or writes a number for each weight.
        averaged: Whether there is a moving average of the weights.
    """

    batch_size: int
    micro_batch: int | None
    virtual_devices: int
    dtype: str
    states: int
    passes: int
    averaged: bool

    def at_a_time(self, clips: int) -> int:
        """Of the clips of a rank, those that are computed together."""
        return min(clips, self.micro_batch or self.batch_size // (self.virtual_devices or 1))

    def groups(self, clips: int) -> int:
        """Virtual devices of a rank; 1 without any."""
        group = self.batch_size // (self.virtual_devices or 1)
        return max(1, clips // group)

    def share(self, batch_size: int, ranks: int) -> int:
        """Clips of each of so many ranks; 0 if clips, or groups of them, do not divide."""
        clips, rest = divmod(batch_size, ranks)
        group = self.batch_size // self.virtual_devices if self.virtual_devices else 1
        return 0 if rest or clips % group or clips % (self.micro_batch or 1) else clips
