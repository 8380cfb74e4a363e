"""Collectives and the bytes of each, as operators of torch that run."""

from collections import Counter

from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = {  # by the name of torch's operator: the kind, and which of its tensors is the whole one
    "allreduce_": ("all_reduce", 0),
    "all_reduce": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
}
SENDS_NOTHING = {"wait_tensor", "_wrap_tensor_autograd"}


class Collectives(TorchDispatchMode):
    """``found`` counts (kind, bytes of the whole tensor).

    An operator that is in neither list is an error, so that nothing is overlooked. Unlike
    ``CommDebugMode``, which counts calls, this sets no hooks on modules, which change how layers
    run.
    """

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again as operators on the local tensors
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._schema.name.partition("::")[2]
            if name not in SENDS_NOTHING:
                kind, whole = KINDS[name]
                tensors = [x for x in tree_leaves(args) if hasattr(x, "nbytes")]
                self.found[kind, tensors[whole].nbytes] += 1
        return func(*args, **(kwargs or {}))
