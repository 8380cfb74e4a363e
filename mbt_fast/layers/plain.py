"""Whether a module does what its class says, so that its weights may be used in its place."""

from torch import Tensor, nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(*modules: nn.Module) -> bool:
    """Whether all are torch's own ``Linear`` or ``LayerNorm``, without hooks, with usual weights.

    Adapters, parametrisations and quantisation replace the class, add hooks, or put another kind
    of tensor in the place of the weight. Such a module must be called.
    """
    return all(map(_is_plain, modules))


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) in (nn.Linear, nn.LayerNorm)
        and type(module.weight) in (Tensor, nn.Parameter)
        and not any(getattr(module, name) for name in _HOOKS)
    )
