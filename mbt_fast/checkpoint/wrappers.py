"""Names that training loops put before those of a model: wrappers, and attributes that hold it."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from mbt_fast.errors import CheckpointError

# What torch.compile, FSDP and activation checkpointing insert at the module that they wrap.
_MARKS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_COUNTER = "n_averaged"  # which AveragedModel keeps beside module.
_PARTS = ("embed", "blocks")  # of an MBT, or of a ViT with timm's names
_AST = "v."  # an AST's own files have their ViT under it, and the classifier beside it


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names inside all wrappers.

    Marks of ``torch.compile`` and FSDP are taken out wherever they stand. Then a first part that
    all names share, such as ``module.`` of ``DataParallel`` or the ``model.`` of a Lightning
    module, is taken off, again and again; the names of one model begin in several ways. Last, what
    stands before ``embed.`` and ``blocks.`` is taken off, if it is one prefix. Names without it,
    such as ``criterion.pos_weight``, stay, so that whoever reads the model names them.

    Raises:
        CheckpointError: Two tensors have one name then.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name
        for mark in _MARKS:
            bare = bare.replace(mark, "")
        if bare == _COUNTER:
            continue
        if bare in plain:
            raise CheckpointError(f"the names of tensors must differ without wrappers, got {bare}")
        plain[bare] = tensor
    while len({name.partition(".")[0] for name in plain}) == 1 < len(plain):
        if not all("." in name for name in plain):
            break
        plain = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
    prefix = _prefix(plain)
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items()}


def _prefix(names: Iterable[str]) -> str:
    """What stands before the model's parts; nothing if that differs."""
    prefixes = set()
    for name in names:
        parts = name.split(".")[:-1]
        first = next((index for index, part in enumerate(parts) if part in _PARTS), None)
        if first is not None:
            prefixes.add("".join(f"{part}." for part in parts[:first]).removesuffix(_AST))
    return prefixes.pop() if len(prefixes) == 1 else ""
