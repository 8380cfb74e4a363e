"""How much memory a forward pass keeps for the backward, counted on tensors without storage."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mbt_fast.config import MBTConfig
from mbt_fast.models import MBT


def kept_bytes(
    config: MBTConfig, clips: int, dtype: torch.dtype, *, recompute: str, backend: str
) -> int:
    """Bytes that autograd keeps between the passes, without weights and inputs.

    The model runs on tensors without storage, as it would on the CPU, and with no branch dropped.

    Args:
        config: The model.
        clips: At a time.
        dtype: Of autocast; float32 for none.
        recompute: As in ``MBT.set_execution``.
        backend: As in ``MBT.set_backend``.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes long to import

    with torch.device("meta"):
        model = MBT(config).set_execution(recompute=recompute).set_backend(backend).eval()
    model.to_empty(device="cpu")  # never touched, so the system gives no memory
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shapes = {m: model.embedding(m).input_shape for m in config.modalities}
        inputs = {m: torch.empty(clips, *shape) for m, shape in shapes.items()}
        weights = [tensor for p in model.parameters() for tensor in (p, mode.from_tensor(p))]
        given = {_storage(tensor) for tensor in (*weights, *inputs.values())}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in given:
                kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        narrow = dtype is not torch.float32
        with (
            saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype) if narrow else nullcontext(),
        ):
            logits = model.forward_modalities(inputs)  # holds on to what was noted
    del logits
    return sum(kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
