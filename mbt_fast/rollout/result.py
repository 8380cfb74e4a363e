"""What ``rollout`` returns."""

from collections.abc import Mapping

from torch import Tensor


class Rollout(dict[str, Tensor]):
    """Modality to its map: the share of each patch, ``[B, frames, h, w]`` or ``[B, time, mel]``.

    It is the mean over the classifiers of the modalities that are present. For every example that
    has any modality, maps, ``cls`` and ``bottlenecks`` sum to one.

    Attributes:
        cls: By modality ``[B]``: the share of the tokens that hold no patch, CLS and its like.
        bottlenecks: ``[B, P]``: the share of the learned bottleneck tokens, before they have read
            anything; ``P`` is 0 where no layer has them.
        by_source: By modality the maps of its own classifier alone. They sum to one likewise, and
            are zero where that modality is absent.
        read: By modality ``[B, layers, P]``: what its own tokens read from each bottleneck token,
            as the share that takes this way, in each layer that has them, first to last.
        written: By modality ``[B, layers, P]``: what its own tokens wrote to each.
    """

    def __init__(
        self,
        maps: Mapping[str, Tensor],
        *,
        cls: dict[str, Tensor],
        bottlenecks: Tensor,
        by_source: dict[str, dict[str, Tensor]],
        read: dict[str, Tensor],
        written: dict[str, Tensor],
    ) -> None:
        """Keep the shares."""
        super().__init__(maps)
        self.cls = cls
        self.bottlenecks = bottlenecks
        self.by_source = by_source
        self.read = read
        self.written = written

    @property
    def shares(self) -> dict[str, Tensor]:
        """By modality ``[B]``: the share of all its tokens, patches and CLS."""
        return {m: x.flatten(1).sum(dim=1) + self.cls[m] for m, x in self.items()}
