"""Inference without the host's share of the time: CUDA graphs of a model, one per shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mbt_fast.ops.autocast import autocast_dtype

Tensors = Mapping[str, Tensor]
WARM_UPS = 3  # what PyTorch's own recipe for capture takes
_SIDE_STREAMS = ContextVar("mbt_fast_side_streams", default=False)


class Model(Protocol):
    """What a model needs for its inference to be captured; an ``MBT`` has it."""

    norm: nn.LayerNorm
    training: bool

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, which a graph reads where they are."""

    def check_inputs(self, inputs: Any, lengths: Any) -> dict[str, Tensor]:
        """Refuse what the model refuses; return the lengths that are given."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Logits."""


class CapturedMBT:
    """What ``MBT.capture`` returns; called like the model.

    A graph reads the weights where they are: training the model, or loading weights into it, is
    seen by the next call; weights that have moved (``Module.to``) are refused. Backend, execution
    and hooks are those of the moment at which a shape is first seen. One caller at a time: the
    graphs share their inputs and their memory.
    """

    def __init__(self, model: Model) -> None:
        """Capture nothing yet."""
        self._model = model
        self._graphs: dict[Any, Graph] = {}
        self._pool: Any = None

    @torch.no_grad()
    def __call__(
        self, inputs: Tensors, lengths: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:
        """Classify, as ``MBT.forward`` does, from the graph of this shape.

        The first call of a shape, padding and autocast dtype records its graph, on a CPU none.

        Args:
            inputs: As in ``MBT.forward``.
            lengths: As in ``MBT.forward``.

        Returns:
            Logits ``[B, num_classes]``, a tensor of its own.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A name, shape, device or value does not fit the configuration.
            RuntimeError: The model is in training mode, or its weights have moved.
        """
        if self._model.training:
            raise RuntimeError("the model must be in evaluation mode, got training mode")
        lengths = self._model.check_inputs(inputs, lengths)
        device = self._model.norm.weight.device
        if not has_graphs(device):
            return self._model(inputs, lengths)
        with torch.cuda.device(device):  # streams and graphs are the current device's
            return self._graph(inputs, lengths)(inputs, lengths)

    def __repr__(self) -> str:
        """Say how many graphs there are."""
        where = "" if self._graphs else ", the model itself where there is no GPU"
        return f"CapturedMBT({len(self._graphs)} CUDA graphs{where})"

    def _graph(self, inputs: Tensors, lengths: Tensors) -> "Graph":
        """The graph of this shape, recorded if it is new."""
        key = self._key(inputs, lengths)
        if key not in self._graphs:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._graphs[key] = Graph(self._model, inputs, lengths, self._pool)
        return self._graphs[key]

    def _key(self, inputs: Tensors, lengths: Tensors) -> Any:
        """What a graph depends on besides the model."""
        shapes = tuple((m, tuple(x.shape), x.dtype) for m, x in sorted(inputs.items()))
        return shapes, tuple(sorted(lengths)), autocast_dtype(self._model.norm.weight)


class Graph:
    """The forward of one shape.

    Args:
        model: In evaluation mode, on a GPU.
        inputs: Of the shape; they are copied.
        lengths: Likewise.
        pool: Memory that it shares with other graphs.
    """

    def __init__(self, model: Model, inputs: Tensors, lengths: Tensors, pool: Any) -> None:
        """Record."""
        self._model = model
        self._inputs = {m: x.detach().clone() for m, x in inputs.items()}
        self._lengths = {m: length.clone() for m, length in lengths.items()}
        self._weights = _addresses(model)
        self._replay, self._logits = record(self._run, pool)

    def __call__(self, inputs: Tensors, lengths: Tensors) -> Tensor:
        """Copy the inputs to where the graph reads them, replay, copy the output."""
        for mine, given in ((self._inputs, inputs), (self._lengths, lengths)):
            for name, tensor in mine.items():
                tensor.copy_(given[name], non_blocking=True)
        self._replay()
        if self._weights != _addresses(self._model):  # looked up while the GPU is at work
            raise RuntimeError(
                "the weights must be where they were at capture, got moved ones, as by Module.to "
                "or load_state_dict(assign=True); call capture again"
            )
        return self._logits.clone()

    def _run(self) -> Tensor:
        with side_streams(), _uncached_autocast(self._model.norm.weight.device):
            logits: Tensor = self._model(self._inputs, self._lengths)
            return logits


def has_graphs(device: torch.device) -> bool:
    """Whether work on this device can be recorded."""
    return device.type == "cuda"


def record(run: Callable[[], Tensor], pool: Any) -> tuple[Callable[[], object], Tensor]:
    """Record what ``run`` does on the GPU.

    Args:
        run: Must do the same every time.
        pool: From ``torch.cuda.graph_pool_handle``.

    Returns:
        What does it again, and the tensor that holds the result then.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = run()
    return graph.replay, result


def _addresses(model: Model) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]


def _uncached_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast as it is, but that a graph casts the weights itself: it must see them change."""
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def side_streams() -> Iterator[None]:
    """Within it ``run_modalities`` gives each modality a CUDA stream of its own.

    Below the fusion layer the modalities do not meet. Eager PyTorch gains nothing from running them
    side by side: at small batches it waits for the host, at large ones one modality fills the GPU.
    A graph has no host to wait for, and small modalities then share the GPU.

    Warm-up runs must be within it as well as the capture: one modality alone may call other
    kernels than all of them together, and none may be compiled during a capture.
    """
    token = _SIDE_STREAMS.set(True)
    try:
        yield
    finally:
        _SIDE_STREAMS.reset(token)


def run_modalities(
    run: Callable[[Sequence[str]], dict[str, Tensor]], modalities: Sequence[str]
) -> dict[str, Tensor]:
    """``run(modalities)``, or within ``side_streams`` one call for each, side by side.

    Whatever a side stream does is ordered after what the current stream did before, and before what
    it does next; so memory that one frees is not written by the other too early.

    Args:
        run: Maps some modalities to their streams; the modalities are independent.
        modalities: All of them.
    """
    if torch.compiler.is_compiling() or not _SIDE_STREAMS.get() or len(modalities) == 1:
        return run(modalities)
    first, *others = modalities
    current = torch.cuda.current_stream()
    sides = [torch.cuda.Stream() for _ in others]
    parts = {}
    for modality, side in zip(others, sides, strict=True):
        side.wait_stream(current)
        with torch.cuda.stream(side):
            parts[modality] = run([modality])[modality]
    parts[first] = run([first])[first]
    for side in sides:
        current.wait_stream(side)
    return {modality: parts[modality] for modality in modalities}
