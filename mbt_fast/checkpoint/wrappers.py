"""Names that training loops put before those of a model: wrappers, and attributes that hold it."""

from collections.abc import Mapping

from torch import Tensor

from mbt_fast.errors import CheckpointError

# What torch.compile, FSDP and activation checkpointing insert at the module that they wrap.
_MARKS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names inside all wrappers.

    Marks of ``torch.compile`` and FSDP are taken out wherever they stand. Then a first part that
    all names share, such as ``module.`` of ``DataParallel`` or the ``model.`` of a Lightning
    module, is taken off, again and again; the names of one model begin in several ways.

    Raises:
        CheckpointError: Two tensors have one name then.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name
        for mark in _MARKS:
            bare = bare.replace(mark, "")
        if bare in plain:
            raise CheckpointError(f"the names of tensors must differ without wrappers, got {bare}")
        plain[bare] = tensor
    while len({name.partition(".")[0] for name in plain}) == 1 < len(plain):
        if not all("." in name for name in plain):
            break
        plain = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
    return plain
