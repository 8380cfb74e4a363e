"""Launchers of the Triton kernels, imported when the first call needs them.

Each takes the outputs to fill, allocated by ``ops.operator``, and then the arguments of the op; the
functions behind them, ``launch`` of ``kernels/<op>_fwd.py`` and ``_bwd.py``, document both.
"""

from typing import Any


def bottleneck_attention_fwd(*arguments: Any) -> None:
    """One launch for the rows of all streams, and one for the mean of the slots."""
    from mbt_fast.kernels.bottleneck_attention_fwd import launch

    launch(*arguments)


def bottleneck_attention_bwd(*arguments: Any) -> None:
    """Three launches: delta, dk and dv, dq."""
    from mbt_fast.kernels.bottleneck_attention_bwd import launch

    launch(*arguments)


def bias_gelu_fwd(*arguments: Any) -> None:
    """A launch per stream."""
    from mbt_fast.kernels.bias_gelu_fwd import launch

    launch(*arguments)


def bias_gelu_bwd(*arguments: Any) -> None:
    """A launch per stream, and one for the sums over rows where there is a bias."""
    from mbt_fast.kernels.bias_gelu_bwd import launch

    launch(*arguments)


def add_layer_norm_fwd(*arguments: Any) -> None:
    """All streams in one launch."""
    from mbt_fast.kernels.add_layer_norm_fwd import launch

    launch(*arguments)


def add_layer_norm_bwd(*arguments: Any) -> None:
    """One launch for the rows of all streams, and one for the sums over rows."""
    from mbt_fast.kernels.add_layer_norm_bwd import launch

    launch(*arguments)


def residual_add_fwd(*arguments: Any) -> None:
    """All streams in one launch."""
    from mbt_fast.kernels.residual_add_fwd import launch

    launch(*arguments)


def residual_add_bwd(*arguments: Any) -> None:
    """All streams in one launch."""
    from mbt_fast.kernels.residual_add_bwd import launch

    launch(*arguments)
