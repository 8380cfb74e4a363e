"""The tolerance rule of the project; there is no other."""

import torch
from torch import Tensor

FACTOR = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 4, torch.float64: 4}


def assert_close_to_exact(
    actual: Tensor, eager: Tensor, exact: Tensor, *, name: str = "output"
) -> None:
    """Bound the error of ``actual`` by the error of eager PyTorch, both measured against float64.

    In the maximum norm ``|actual - exact| <= k * |eager - exact| + 2 * eps(dtype) * max|exact|``,
    with ``k`` 2 for 16-bit types and 4 for wider ones, whose rounding depends more on the order of
    summation: torch's own fused float32 gradients reach 3. Infinities must be the same ones.

    Args:
        actual: What is tested.
        eager: The reference in the dtype of ``actual``, on the same inputs.
        exact: The reference in float64, on the same, already rounded inputs.
        name: What to call it in the message.

    Raises:
        AssertionError: A shape or dtype differs, a value is not finite where the exact one is, or
            the error exceeds the bound; says where.
    """
    assert exact.dtype == torch.float64, f"{name}: exact must be float64, got {exact.dtype}"
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    assert actual.dtype == eager.dtype, f"{name}: dtype {actual.dtype}, expected {eager.dtype}"
    actual, eager, exact = actual.detach(), eager.detach(), exact.detach()
    finite = torch.isfinite(exact)
    same = torch.where(finite, torch.isfinite(actual), actual.double() == exact)
    assert same.all(), f"{name}: not finite, or not the right infinity, at {_first(~same)}"
    if not finite.any():
        return
    error = (actual.double() - exact).abs().masked_fill(~finite, 0)
    eager_error = (eager.double() - exact).abs().masked_fill(~finite, 0).max()
    rounding = 2 * torch.finfo(actual.dtype).eps * exact.masked_fill(~finite, 0).abs().max()
    factor = FACTOR[actual.dtype]
    bound = factor * eager_error + rounding
    where = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    assert error.max() <= bound, (
        f"{name}: error {error.max():.3e} at {where} exceeds {bound:.3e} "
        f"({factor} x the error of eager, {eager_error:.3e}, plus rounding {rounding:.3e})"
    )


def _first(mask: Tensor) -> list[int]:
    return mask.nonzero()[0].tolist()
