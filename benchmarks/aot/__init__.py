"""Kernels for GPUs compiled ahead: what they need, and how long they should take."""
