"""Import timm where torchvision is not installed.

timm imports torchvision for image transforms and layers that its ViT does not use. The wheel of
torchvision on PyPI is built for CUDA, and does not fit the torch that is tested. So an empty
package is put in its place, which has every name and does nothing.
"""

import importlib.abc
import importlib.machinery
import sys
import types


class Anything(type):
    """A class with every attribute that is asked for."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Empty(types.ModuleType):
    """A package with every class that is asked for."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision and whatever is in it, last of all finders."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        """There is nothing in it."""


sys.meta_path.append(Finder())
