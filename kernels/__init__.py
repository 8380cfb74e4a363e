"""Triton kernels and their launchers, installed as ``mbt_fast.kernels``."""

if __name__ == "kernels":
    raise ImportError(
        "the folder kernels/ of the mbt_fast checkout was imported as the top-level package "
        "'kernels', because the repository root is on sys.path; import 'mbt_fast.kernels' instead, "
        "or start Python with -P to reach another package of that name"
    )
