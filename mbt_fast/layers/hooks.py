"""Whether a module must be called, or its weights may be used in its place."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def are_unmodified(*groups: tuple[type[nn.Module], Iterable[nn.Module]]) -> bool:
    """Whether modules do what their class says, so that their weights may be used in their place.

    Adapters, parametrisations and quantisation replace the class, add hooks, or put another kind
    of tensor in the place of a parameter. Such a module must be called.

    Args:
        *groups: A class, and modules that should be of it. A group is looked at when all before
            it are unmodified.
    """
    for kind, modules in groups:
        for module in modules:
            if type(module) is not kind:
                return False
            for hooks in _HOOKS:
                if getattr(module, hooks):
                    return False
            for parameter in module._parameters.values():
                if parameter is not None and type(parameter) not in (Tensor, nn.Parameter):
                    return False
    return True


def has_hooks(module: nn.Module) -> bool:
    """Whether anything waits for the module to be called."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def is_everything_watched() -> bool:
    """Whether a hook on all modules is set, as by ``register_module_forward_hook``.

    The hooks of torch's ``ModuleTracker`` do not count. They note which module is running, so that
    ``FlopCounterMode`` can count what runs without it.
    """
    if not torch_module._has_any_global_hook():
        return False
    from torch.utils.module_tracker import ModuleTracker  # not loaded by torch itself

    hooks = (hook for name in _HOOKS for hook in getattr(torch_module, f"_global{name}").values())
    return any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)
