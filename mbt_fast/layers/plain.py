"""Whether a module does what its class says, so that its weights may be used in its place."""

from torch import Tensor, nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is just of this class, without hooks, and has parameters of the usual kind.

    Adapters, parametrisations and quantisation replace the class, add hooks, or put another kind
    of tensor in the place of a parameter. Such a module must be called.
    """
    return (
        type(module) is kind
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and all(type(p) in (Tensor, nn.Parameter) for p in module.parameters(recurse=False))
    )
