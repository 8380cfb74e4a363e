"""Importing is light: torch alone, no triton, no device, nothing compiled."""

import json
import subprocess
import sys
import textwrap

OPTIONAL = {"av", "msgpack", "safetensors", "tabulate", "triton"}


def run(code, *arguments, tmp_path):
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_needs_torch_alone(tmp_path):
    """Every optional package is replaced by one that refuses its import."""
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')")
    code = """
        import json, sys
        sys.path.insert(0, sys.argv[1])
        import torch
        before = set(sys.modules)
        import mbt_fast
        new = set(sys.modules) - before
        print(json.dumps(sorted(n for n in new if not n.startswith("mbt_fast"))))
    """
    new = run(code, tmp_path, tmp_path=tmp_path)
    roots = {name.split(".")[0] for name in new}
    assert not roots & (OPTIONAL | {"numpy", "tqdm"})  # torch itself imports these two


def test_flops_are_counted_whichever_is_imported_first(tmp_path):
    code = """
        import importlib.util, json, sys, torch
        if sys.argv[1] == "counter":
            from torch.utils.flop_counter import FlopCounterMode
        import mbt_fast
        loaded = "torch.utils.flop_counter" in sys.modules
        importlib.util.find_spec("torch.utils.flop_counter")  # a probe, which imports nothing
        from torch.utils.flop_counter import FlopCounterMode
        with FlopCounterMode(display=False) as counter:
            mbt_fast.bottleneck_attention([torch.zeros(1, 5, 3, 1, 16)], 1, return_lse=True)
        print(json.dumps([loaded, counter.get_total_flops()]))
    """
    flops = 6 * 5 * 5 * 16
    assert run(code, "counter", tmp_path=tmp_path) == [True, flops]
    assert run(code, "mbt_fast", tmp_path=tmp_path) == [False, flops]


def test_import_touches_no_device_and_loads_no_extension(tmp_path):
    code = """
        import json, sys, torch
        import mbt_fast
        print(json.dumps([torch.cuda.is_initialized(), "mbt_fast._C" in sys.modules]))
    """
    assert run(code, tmp_path=tmp_path) == [False, False]


def test_a_forked_worker_can_call(tmp_path):
    """xformers#1030, TransformerEngine#872: a context made at import kills forked workers."""
    code = """
        import json, os, torch, mbt_fast
        worker = os.fork()
        if worker == 0:
            (out,) = mbt_fast.bottleneck_attention([torch.zeros(1, 5, 3, 1, 16)], 1)
            if torch.cuda.is_available():
                mbt_fast.bottleneck_attention([torch.zeros(1, 5, 3, 1, 16, device="cuda")], 1)
            os._exit(0 if out.eq(0).all() else 1)
        print(json.dumps(os.waitpid(worker, 0)[1]))
    """
    assert run(code, tmp_path=tmp_path) == 0


def test_import_is_light(tmp_path):
    """At most a sixth of what importing torch takes, the best of three, and nobody's modules."""
    code = """
        import json, sys, time
        times = [time.perf_counter()]
        import torch, torch.utils.checkpoint
        times.append(time.perf_counter())
        before = set(sys.modules)
        import mbt_fast
        times.append(time.perf_counter())
        new = [name for name in set(sys.modules) - before if not name.startswith("mbt_fast")]
        modules = sum(name.startswith("mbt_fast") for name in sys.modules)
        print(json.dumps([(times[2] - times[1]) / (times[1] - times[0]), modules, new]))
    """
    shares, modules, new = zip(*(run(code, tmp_path=tmp_path) for _ in range(3)), strict=True)
    assert min(shares) < 1 / 6
    assert new[0] == []
    assert modules[0] <= 80


def test_the_first_call_may_be_compiled(tmp_path):
    code = """
        import json, torch, mbt_fast
        run = torch.compile(lambda x: mbt_fast.bottleneck_attention([x], 1)[0], fullgraph=True)
        x = torch.randn(1, 5, 3, 1, 16)
        torch.testing.assert_close(run(x), mbt_fast.bottleneck_attention([x], 1)[0])
        print(json.dumps(True))
    """
    assert run(code, tmp_path=tmp_path) is True
