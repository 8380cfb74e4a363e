"""A trace of one call with named ranges: ``layer 8 / rgb / mlp``, and the same in the backward.

The ranges are put around the parts from outside, and only while a trace is taken: an attribute of
the instance hides the method. So they cost nothing otherwise, and change nothing: hooks would send
a block down another path (``layers.plain``).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mbt_fast.layers import Block, FusionLayer, all_streams, fusion
from mbt_fast.layers.fusion import SHARED, Streams
from mbt_fast.models import MBT, MBTConfig
from mbt_fast.profiling.measure import Setting, build_models, random_inputs, step_of
from mbt_fast.profiling.trace_backward import name_the_backward

PARTS = {"packed": "qkv", "query_key_value": "qkv", "_mlp": "mlp"}  # methods of a block
OF_ALL_STREAMS = {"project": "qkv", "add_and_pass_mlps": "mlp"}  # where a kernel backend norms them


def write_trace(path: Path, config: MBTConfig, setting: Setting) -> None:
    """Write a Chrome trace of one call, after one that warms up.

    Args:
        path: The file; ``chrome://tracing`` and ``ui.perfetto.dev`` open it.
        config: The model.
        setting: How it is run.
    """
    (model,) = build_models([config], setting)
    step = step_of(model, random_inputs(config, setting), setting)
    step()
    activities = [ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with named_ranges(model), profile(activities=activities, record_shapes=True) as record:
        step()
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
    record.export_chrome_trace(str(path))
    name_the_backward(path)


@contextmanager
def named_ranges(model: MBT) -> Iterator[None]:
    """While it lasts, every part of the model runs in a ``record_function`` of its name.

    Names are ``embed / modality``; ``layer i``, or ``layer i / modality`` where a layer is called
    with one stream; within it ``layer i / part`` or ``layer i / modality / part``; then ``norm``
    and ``head``. Joined streams are the stream ``shared``.
    """
    with ExitStack() as stack:
        place = _Place()
        for modality in model.config.modalities:
            _wrap(stack, model.embedding(modality), "forward", _always(f"embed / {modality}"))
        for index, layer in enumerate(model.layers):
            _name_layer(stack, layer, f"layer {index}", place)
        for op, name in (
            ("bottleneck_attention", place.of_streams("attention")),
            ("dense_attention", place.of_stream("attention")),
            ("add_mlps", place.of_streams("residual, shared slots")),
        ):
            _wrap(stack, fusion, op, name)
        for function, part in OF_ALL_STREAMS.items():
            _wrap(stack, all_streams, function, place.of_all_streams(part))
        for part in ("norm", "head"):
            _wrap(stack, getattr(model, part), "forward", _always(part))
        yield


Name = Callable[[], str]


class _Place:
    """The layer that runs, with which streams, and the modality whose block it asked for last."""

    layer = streams = modality = ""

    def enter(self, layer: str, streams: Streams) -> str:
        """The name of a layer's call, in which one stream alone is named."""
        self.layer = layer
        self.streams = layer if len(streams) > 1 else f"{layer} / {next(iter(streams))}"
        return self.streams

    def of_streams(self, part: str) -> Name:
        """The name of what a layer does for all its streams at once."""
        return lambda: f"{self.streams} / {part}"

    def of_all_streams(self, part: str) -> Name:
        """Likewise, where a block is not asked for before it is used."""

        def name() -> str:
            self.modality = SHARED
            return f"{self.streams} / {part}"

        return name

    def of_stream(self, part: str, modality: str = "") -> Name:
        """The name of what it does for one stream; a shared block is not told for which."""
        return lambda: f"{self.layer} / {modality or self.modality} / {part}"


def _name_layer(stack: ExitStack, layer: FusionLayer, name: str, place: _Place) -> None:
    forward, block_of = layer.forward, layer.block_of

    def enter(streams: Streams, *args: Any, **kwargs: Any) -> Streams:
        with record_function(place.enter(name, streams)):
            return forward(streams, *args, **kwargs)

    def find(modality: str) -> Block:
        place.modality = modality
        return block_of(modality)

    _set(stack, layer, "forward", enter)
    _set(stack, layer, "block_of", find)
    for key, block in layer.items():
        own = "" if key == SHARED else key
        for method, part in PARTS.items():
            _wrap(stack, block, method, place.of_stream(part, own))
        _wrap(stack, block.attn, "output", place.of_stream("proj", own))


def _always(name: str) -> Name:
    return lambda: name


def _wrap(stack: ExitStack, owner: Any, attribute: str, name: Name) -> None:
    """Run a function in a range."""
    original = getattr(owner, attribute)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_function(name()):
            return original(*args, **kwargs)

    _set(stack, owner, attribute, wrapped)


def _set(stack: ExitStack, owner: Any, attribute: str, value: Any) -> None:
    """Set an attribute until the stack is left."""
    own = vars(owner)
    before = own.get(attribute)
    setattr(owner, attribute, value)
    if before is None:
        stack.callback(delattr, owner, attribute)
    else:
        stack.callback(setattr, owner, attribute, before)
