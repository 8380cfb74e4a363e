"""Launchers of the CUDA kernels for NVIDIA Hopper, ``csrc/cuda``."""
