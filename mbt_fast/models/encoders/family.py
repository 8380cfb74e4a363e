"""What a fused model must know of a tower, the same for every family of encoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor

# Modules of foreign make: their attributes are known by name alone.
Tower: TypeAlias = Any
Layer: TypeAlias = Any


NO_DROPOUT = "our attention has none"


class Need(NamedTuple):
    """The value that an attribute must have, if it exists."""

    path: str
    value: object
    why: str


class Family(ABC):
    """Encoders whose parts have the same names: pre-norm layers between an embedding and a norm.

    A layer is taken apart around its attention, ``y = x + Attn(LN1 x)``, ``z = y + MLP(LN2 y)``.
    What remains are its own modules, whatever they are: erf- or tanh-GELU, dropout, layer scale,
    adapters. A family has no state, and looks parts up at every call, so they may be replaced.
    """

    title: ClassVar[str]
    signs: ClassVar[tuple[str, ...]]  # attributes that only towers of this family have together
    stack: ClassVar[str]  # where the layers are
    tower_needs: ClassVar[tuple[Need, ...]] = ()
    tower_parts: ClassVar[tuple[str, ...] | None] = None  # None where a head may come on top
    parts: ClassVar[tuple[str, ...]]  # what a layer consists of, its first norm first
    takes_heads: ClassVar[tuple[str, ...]]  # the first that a layer has takes attention's output
    cuts_patches: ClassVar[str] = ""  # the convolution of the embedding, if it has one
    optional_parts: ClassVar[tuple[str, ...]] = ()
    layer_needs: ClassVar[tuple[Need, ...]] = ()
    training_needs: ClassVar[tuple[Need, ...]] = ()  # of a layer that is taken apart in training
    interpolates: ClassVar[bool] = False  # positions, in embed_resized

    def body(self, tower: Tower) -> Tower:
        """The encoder itself, if ``tower`` puts a head on top of it."""
        return tower

    def recognises(self, tower: Tower) -> bool:
        """Whether the tower has the attributes of this family."""
        body = self.body(tower)
        return all(look_up(body, sign) is not None for sign in self.signs)

    def layers(self, tower: Tower) -> Sequence[Layer]:
        """The layers, first to last."""
        return look_up(self.body(tower), self.stack)

    def whole(self, layer: Layer, x: Tensor) -> Tensor:
        """The layer's own forward on tokens ``[B, N, C]``."""
        out = layer(x)
        return out[0] if isinstance(out, tuple) else out

    def swaps_axes(self, x: Tensor) -> bool:
        """Whether the patches of input ``x`` lie along the last of its two axes first."""
        return False

    def width(self, layer: Layer) -> int:
        """Channels ``C`` of a token."""
        return look_up(layer, self.parts[0]).normalized_shape[-1]

    @abstractmethod
    def embed(self, tower: Tower, x: Tensor) -> Tensor:
        """Map the tower's input to the tokens ``[B, N, C]`` that its first layer takes."""

    def embed_resized(self, tower: Tower, x: Tensor) -> Tensor:
        """As ``embed``, for an input of another size: with its positions interpolated."""
        return self.embed(tower, x)

    @abstractmethod
    def packed(self, layer: Layer, x: Tensor) -> Tensor:
        """First half: what attention reads of tokens ``[B, S, C]``, as ``[B, S, 3, H, D]``."""

    @abstractmethod
    def finish(self, layer: Layer, x: Tensor, heads: Tensor) -> Tensor:
        """Second half: both residual branches, given attention's output ``[B, S, H, D]``.

        The result is a new tensor, into which slots may be written.
        """

    @abstractmethod
    def norm(self, tower: Tower, x: Tensor) -> Tensor:
        """The norm after the last layer."""


def look_up(owner: Any, path: str, default: object = None) -> Any:
    """``owner.a.b`` for the path ``"a.b"``, or ``default`` where an attribute is missing."""
    try:
        return attrgetter(path)(owner)
    except AttributeError:
        return default


def apply_part(owner: Any, name: str, x: Tensor) -> Tensor:
    """Apply a part that not every version or configuration has."""
    part = getattr(owner, name, None)
    return x if part is None else part(x)
