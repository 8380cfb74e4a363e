"""Averages of weights: one that moves along with training, and one of the last checkpoints."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


class Ema:
    """Exponential moving average of a model's weights, ``decay`` of it kept at each update.

    It starts as the weights that the model has. Whatever is not a float, such as a counter, is
    copied. Float16 and bfloat16 weights are averaged in float32: their steps are too large.

    Args:
        model: Whose state is averaged; not kept.
        decay: Share of the average that an update keeps, in [0, 1).

    Raises:
        ValueError: The decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copy the state of the model."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self._average = {name: _widened(value) for name, value in _state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights; call it after each step of the optimizer."""
        for name, value in _state(model).items():
            average = self._average[name]
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1 - self.decay)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by the names of the model's own state."""
        return dict(self._average)

    def load_state_dict(self, state: State) -> None:
        """Continue from a state that ``state_dict`` returned.

        Raises:
            ValueError: It is that of another model.
        """
        _check_names(self._average, state)
        for name, average in self._average.items():
            average.copy_(state[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the averages to the model for a while, and then its own weights back."""
        own = {name: value.clone() for name, value in _state(model).items()}
        try:
            model.load_state_dict(self._average)
            yield
        finally:
            model.load_state_dict(own)


@torch.no_grad()
def average(states: Iterable[State]) -> dict[str, Tensor]:
    """Mean of several states of one model, such as its last checkpoints.

    Sums are in float64, and the result has the dtypes of the states. Whatever is not a float is
    that of the last state.

    Args:
        states: At least one; an iterator needs memory for one at a time.

    Raises:
        ValueError: There is none, or they are of different models.
    """
    sums: dict[str, Tensor] = {}
    last: State = {}
    count = 0
    for state in states:
        _check_names(last or state, state)
        last, count = state, count + 1
        for name, value in state.items():
            if value.is_floating_point():
                sums[name] = sums.get(name, 0) + value.double()
    if not count:
        raise ValueError("states must hold at least one state, got none")
    return {
        name: (sums[name] / count).to(value.dtype) if name in sums else value.clone()
        for name, value in last.items()
    }


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


def _widened(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.clone()
    return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)


def _check_names(own: State, given: State) -> None:
    different = sorted(own.keys() ^ given.keys())
    if different:
        raise ValueError(f"states must be of one model, got {different[0]!r} in one of them alone")
