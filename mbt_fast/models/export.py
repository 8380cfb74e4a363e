"""A model as a program that needs nothing of this library."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mbt_fast.layers import FusionLayer
from mbt_fast.models.fuse import FusedTowers
from mbt_fast.models.inputs import without_none
from mbt_fast.ops.dispatch import STOCK


def export(
    model: nn.Module, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor] | None = None
) -> torch.export.ExportedProgram:
    """Trace the forward as a program of PyTorch's own operators, for any batch size.

    The program can be saved by ``torch.export.save`` and loaded where ``mbt_fast`` is not
    installed, converted by ``torch.onnx.export(program)``, which needs ``onnxscript``, or compiled
    by ``torch._inductor.aoti_compile_and_package(program)``.

    Args:
        model: ``MBT``, what ``fuse`` returned, or a module around one of them whose forward takes
            the same arguments. In evaluation mode.
        inputs: An example: of every modality that the program will be given.
        lengths: Likewise; without them the program takes none. Entries of ``None`` are left out.

    Returns:
        The program, which is called by ``program.module()(inputs)`` or ``(inputs, lengths)``.

    Raises:
        RuntimeError: The model is in training mode.
        TypeError: An argument has the wrong type or dtype.
        ValueError: A name, shape, device or value does not fit the model.

    Example:
        >>> from mbt_fast import create_model
        >>> model = create_model("mbt_tiny").eval()
        >>> program = export(model, {"rgb": torch.randn(1, 3, 2, 32, 32)})
        >>> program.module()({"rgb": torch.randn(5, 3, 2, 32, 32)}).shape
        torch.Size([5, 10])
    """
    if model.training:
        raise RuntimeError("the model must be in evaluation mode, got training mode")
    arguments = [{m: _two_examples(x) for m, x in inputs.items()}]
    if lengths is not None:
        arguments.append({m: _two_examples(x) for m, x in without_none(lengths).items()})
    batch = torch.export.Dim("batch")
    shapes = tuple({name: {0: batch} for name in argument} for argument in arguments)
    with torch.no_grad(), _on_stock_pytorch(model):
        model(*arguments)  # says in words what does not fit
        return torch.export.export(model, tuple(arguments), dynamic_shapes=shapes)


def _two_examples(x: Tensor) -> Tensor:
    """At least two: of a batch of one the tracer would conclude that it always is one."""
    return torch.cat([x, x]) if len(x) == 1 else x


@contextmanager
def _on_stock_pytorch(model: nn.Module) -> Iterator[None]:
    """Within it no kernel of ours runs."""
    units = [m for m in model.modules() if isinstance(m, FusionLayer | FusedTowers)]
    before = [unit.chosen_backend for unit in units]
    try:
        for unit in units:
            unit.set_backend(STOCK.name)
        yield
    finally:
        for unit, backend in zip(units, before, strict=True):
            unit.set_backend(backend)
