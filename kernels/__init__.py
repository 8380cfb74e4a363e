"""Triton kernels and their launchers, installed as ``mbt_fast.kernels``."""

if __name__ == "kernels":
    # The repository root is on sys.path. Libraries that ask whether Hugging Face's package of this
    # name is installed, as transformers does, get this folder, and must not fail for that alone.
    __path__.clear()  # no kernel is imported under a second name

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            "the folder kernels/ of the mbt_fast checkout was imported as the top-level package "
            "'kernels', because the repository root is on sys.path; import 'mbt_fast.kernels' "
            "instead, or start Python with -P to reach another package of that name"
        )
