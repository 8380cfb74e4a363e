"""Training on several devices, on one host or on many."""

from mbt_fast.parallel.gradients import clip_grad_norm_, sum_gradients
from mbt_fast.parallel.modality import ModalityParallelMBT, modality_parallel

__all__ = ["ModalityParallelMBT", "clip_grad_norm_", "modality_parallel", "sum_gradients"]
