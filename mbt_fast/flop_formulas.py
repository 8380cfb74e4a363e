"""FLOP formulas for ``torch.utils.flop_counter``, which counts an operator without one as zero.

They cover our operators and torch's own attention on the CPU, which torch leaves out. Importing
torch's counter imports triton where that is installed, and the counter copies its registry when it
is constructed. So the formulas are registered neither here and now nor at the first call, but right
after somebody imports the counter.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

COUNTER = "torch.utils.flop_counter"

Shape = Sequence[int]


def install() -> None:
    """Register the formulas now if torch's counter is loaded, else as soon as it is."""
    if COUNTER in sys.modules:
        register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())


def register(counter: ModuleType) -> None:
    """Register every formula that ``counter``, the module, does not have yet."""
    aten, own = torch.ops.aten, torch.ops.mbt_fast
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        own.attention_lse_fwd: _attention_lse,
        own.attention_lse_bwd: _attention_lse_backward,
        own.bottleneck_attention_fwd: _bottleneck_attention,
        own.bottleneck_attention_bwd: _bottleneck_attention_backward,
    }
    for packet, formula in formulas.items():
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
    """Two products over all pairs of a query and a key."""
    return 4 * _pairs(query, key) * query[3]


def _attention_backward(
    dout: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any
) -> int:
    """Five products: the scores again, and the gradients of scores, query, key and value."""
    return 10 * _pairs(query, key) * query[3]


def _attention_lse(query: Shape, key: Shape, *args: Any, **kwargs: Any) -> int:
    """The scores."""
    return 2 * _pairs(query, key) * query[3]


def _attention_lse_backward(
    dlse: Shape, query: Shape, key: Shape, *args: Any, **kwargs: Any
) -> int:
    """The scores again, and the gradients of query and key."""
    return 6 * _pairs(query, key) * query[3]


def _bottleneck_attention(qkv: Sequence[Shape], *args: Any, **kwargs: Any) -> int:
    """Two products inside each stream ``[B, S, 3, H, D]``."""
    return sum(4 * b * h * s * s * d for b, s, _, h, d in qkv)


def _bottleneck_attention_backward(
    douts: Any, dlses: Any, saved: Any, qkv: Sequence[Shape], *args: Any, **kwargs: Any
) -> int:
    """Five products, what a backward needs, though one of two passes may compute some twice."""
    return sum(10 * b * h * s * s * d for b, s, _, h, d in qkv)


def _pairs(query: Shape, key: Shape) -> int:
    """Pairs of a query and a key, of shapes ``[B, H, rows, D]``."""
    return query[0] * query[1] * query[2] * key[2]
