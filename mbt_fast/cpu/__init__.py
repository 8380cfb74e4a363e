"""Launchers of the C++ kernels: tensors become pointers and strides for ``mbt_fast._C``."""
