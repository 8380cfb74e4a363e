"""Triton kernels and their launchers, installed as ``mbt_fast.kernels``."""

if __name__ == "kernels":
    # The repository root is on sys.path. Libraries that ask whether Hugging Face's package of this
    # name is installed, as transformers does, get this folder, and must not fail for that alone.
    import importlib.abc
    import sys

    __path__.clear()  # no kernel is imported under a second name

    _MESSAGE = (
        "the folder kernels/ of the mbt_fast checkout was imported as the top-level package "
        "'kernels', because the repository root is on sys.path; import 'mbt_fast.kernels' "
        "instead, or start Python with -P to reach another package of that name"
    )

    class _Refusing(importlib.abc.MetaPathFinder):
        """Says of submodules too where they are."""

        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            if fullname.startswith("kernels."):
                raise ModuleNotFoundError(_MESSAGE, name=fullname)

    sys.meta_path.append(_Refusing())

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(_MESSAGE)
