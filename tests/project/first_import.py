"""What the first import of mbt_fast does in a process, as JSON; test_import.py runs and reads it.

``python first_import.py FOLDER``, where FOLDER has optional packages that refuse to be imported.
"""

import importlib.util
import json
import os
import sys

import torch

STREAM = (1, 5, 3, 1, 16)


def counted():
    """FLOPs of attention, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    import mbt_fast

    with FlopCounterMode(display=False) as counter:
        mbt_fast.bottleneck_attention([torch.zeros(STREAM)], 1, return_lse=True)
    return counter.get_total_flops()


def counted_after_the_counter():
    """The same, where the counter is imported before mbt_fast."""
    import torch.utils.flop_counter  # noqa: F401

    return counted()


def works_in_a_worker():
    """xformers#1030, TransformerEngine#872: a context made at import kills forked workers."""
    import mbt_fast

    device = "cuda" if torch.cuda.is_available() else "cpu"
    (out,) = mbt_fast.bottleneck_attention([torch.zeros(STREAM, device=device)], 1)
    return bool(out.eq(0).all())


def in_a_fork(function):
    """What a function returns in a child of this process."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(function()).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    return json.loads(os.read(reader, 1000) or "null")


def import_without_optional_packages(folder):
    """Import mbt_fast; return the modules that it brings."""
    sys.path.insert(0, folder)
    before = set(sys.modules)
    import mbt_fast  # noqa: F401

    sys.path.remove(folder)
    return sorted(set(sys.modules) - before)


def compiled_first_call_is_exact():
    """Whether the first call in this process may be one that is compiled."""
    from mbt_fast import bottleneck_attention
    from mbt_fast.testing import assert_close_to_exact

    def attend(x, backend="auto"):
        return bottleneck_attention([x], 1, backend=backend)[0]

    x = torch.randn(STREAM)
    actual = torch.compile(attend, fullgraph=True, backend="aot_eager")(x)
    assert_close_to_exact(actual, attend(x, "reference"), attend(x.double(), "reference"))
    return True


def report(folder):
    """All of it, in the one order in which each statement is about a first time."""
    found = {"flops, counter first": in_a_fork(counted_after_the_counter)}
    found["modules"] = import_without_optional_packages(folder)
    found["cuda is initialised"] = torch.cuda.is_initialized()
    found["forked worker"] = in_a_fork(works_in_a_worker)
    found["compiled first call"] = compiled_first_call_is_exact()
    importlib.util.find_spec("torch.utils.flop_counter")  # a probe, which imports nothing
    found["flops, mbt_fast first"] = in_a_fork(counted)
    return found


if __name__ == "__main__":
    json.dump(report(sys.argv[1]), sys.stdout)
