"""FLOP formulas for ``torch.utils.flop_counter``, which counts an operator without one as zero.

Each op registers the formula of its own operators here; torch's own attention on the CPU, which
torch leaves out, is added. Importing torch's counter imports triton where that is installed, which
takes half a second, and the counter copies its registry when it is constructed. So the formulas are
registered right after somebody imports the counter.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

COUNTER = "torch.utils.flop_counter"

Shape = Sequence[int]
_FORMULAS: dict[Any, Callable[..., int]] = {}


def count_flops(packet: Any, formula: Callable[..., int]) -> None:
    """Register a formula, of the shapes of an operator's arguments, now or when it is needed."""
    _FORMULAS[packet] = formula
    if COUNTER in sys.modules:
        register(sys.modules[COUNTER])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def register(counter: ModuleType) -> None:
    """Register every formula that ``counter``, the module, does not have yet."""
    for packet, formula in _FORMULAS.items():
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(formula)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing but torch's counter, and registers the formulas when it is loaded."""

    searching = False  # while the others are asked, which would ask this finder again

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The counter's own spec, with the registration put behind its loading."""
        if fullname != COUNTER or self.searching:
            return None
        self.searching = True
        spec = importlib.util.find_spec(fullname)
        self.searching = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                register(module)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Two products over all pairs of a query and a key, of shapes ``[B, H, rows, D]``."""
    return 4 * query[0] * query[1] * query[2] * key[2] * query[3]


def _attention_backward(
    dout: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any
) -> int:
    """Five products: the scores again, and the gradients of scores, query, key and value."""
    return 10 * query[0] * query[1] * query[2] * key[2] * query[3]


count_flops(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _attention)
count_flops(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, _attention_backward
)
