"""Every entry of the registry on tiny shapes: what it compares, and what it records."""

import importlib
from dataclasses import replace

import pytest
import torch

from benchmarks import registry, run
from benchmarks.case import Scope
from benchmarks.entries import host_cost, layer, model, savings, sweeps
from benchmarks.launches import count_launches
from benchmarks.measure import Timing, measure_case
from benchmarks.record import Ceilings
from benchmarks.ways import WAYS, Task
from mbt_fast import dispatch, native

CPU = torch.device("cpu")
SCOPE = Scope(CPU, smoke=True)
TIMING = Timing(device=CPU, seconds=float("inf"), min_rounds=2, max_rounds=2)
CEILINGS = Ceilings(matmul_gflops={"float32": 100.0, "bfloat16": 100.0}, copy_gb_per_s=10.0)
ENTRIES = [entry.name for entry in registry.ENTRIES]


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on a busy machine wait for each other longer than such shapes take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cases(name):
    return list(importlib.import_module(registry.entry(name).module).cases(SCOPE))


def uncompiled(case):
    """The case without what takes a compiler half a minute; one thread."""

    def variants():
        return {n: v for n, v in case.variants().items() if "compiled" not in n}

    return replace(case, variants=variants, threads=1)


def first_of_each_kind(name):
    return list({(case.name, case.mode): case for case in cases(name)}.values())


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_runs(name):
    if "sdpa" not in name and any("cpu" in v for v in cases(name)[0].variants()):
        pytest.importorskip("mbt_fast._C", reason="the C++ kernels are not built")
    for case in first_of_each_kind(name):
        records = measure_case(name, uncompiled(case), TIMING, CEILINGS)
        assert {r.error for r in records} == {None}
        for record in records:
            counted = case.name.endswith("counted")
            assert (record.ms is None) == (counted or not case.timed)
            assert counted or record.launches is not None
            assert run.line(record)


@pytest.mark.parametrize("mode", ["forward", "step"])
def test_compiled_ways_run(mode):
    """One of them, as a layer."""
    (case,) = (c for c in cases("layer") if (c.mode, c.dtype) == (mode, torch.float32))

    def variants():
        found = case.variants()
        return {name: found[name] for name in ("eager", "eager, compiled")}

    _, compiled = measure_case("layer", replace(case, variants=variants), TIMING, CEILINGS)
    assert compiled.error is None
    assert compiled.launches is None  # cannot be counted on a CPU
    assert compiled.ratio is not None


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda entry: entry.name)
def test_registry_names_files_that_exist(entry):
    root = importlib.import_module("benchmarks.gate").ROOT
    for device in entry.seconds:
        assert all((root / file).is_file() for file in entry.guards_on(device))


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_every_peer_is_in_the_registry(gpu, monkeypatch):
    monkeypatch.setattr(Scope, "gpu", property(lambda scope: gpu))
    from benchmarks import peers, ways

    device = torch.device("cuda" if gpu else "cpu")
    names = {*peers.attention_peers(device), *ways.ways(device)}
    assert {name for name in names if not name.startswith("ours")} <= set(registry.PEERS)


def test_the_list_names_every_entry_and_peer():
    text = run.listing()
    assert all(name in text for name in (*ENTRIES, *registry.PEERS))
    with pytest.raises(ValueError, match="name must be one of"):
        registry.entry("nothing")


EQUAL = [name for name in WAYS if "compiled" not in name]


@pytest.mark.parametrize("name", EQUAL)
def test_every_way_computes_what_our_model_computes(name):
    """So that no baseline is slow, or fast, for being wrong."""
    way = WAYS[name]
    task = Task("mbt_tiny", "forward", 2, torch.float64)
    (ours,), inputs = task.build([way.config(task.config)], CPU)
    torch.testing.assert_close(way.forward(ours, inputs), ours(inputs))


def test_the_official_way_costs_more_than_the_equations_ask():
    task = Task("mbt_base", "forward", 1, torch.float32, {"fusion_layer": 0})
    own, official = (WAYS[name] for name in ("vanilla own", "vanilla official"))
    flops = [task.flops(way.config(task.config), way.cost).total for way in (own, official)]
    assert flops[1] > 1.5 * flops[0]


def test_host_cost_leaves_everything_as_it_was():
    before = host_cost.dispatch.BACKENDS, host_cost.op.import_launchers
    (case,) = host_cost.cases(SCOPE)
    call, launcher = measure_case("host_cost", case, TIMING, CEILINGS)
    assert (host_cost.dispatch.BACKENDS, host_cost.op.import_launchers) == before
    assert call.ms.median > launcher.ms.median


def test_each_saving_is_measured_on_and_off():
    found = {case.name: set(case.variants()) for case in savings.cases(SCOPE)}
    assert found == {
        "kept": {"eager", "ours, memory full", "ours, memory reduced", "ours, memory minimal"},
        "forward": {"eager", *savings.OF_FORWARD},
        "step": {"eager", *savings.SAVINGS},
        "depth": {"ours, masked", "ours, skipped"},
    }


def test_variants_of_depth_draw_the_same_survivors(monkeypatch):
    drawn = []
    monkeypatch.setattr(savings.torch, "manual_seed", drawn.append)
    (*_, case) = savings.cases(SCOPE)
    measure_case("savings", case, TIMING, CEILINGS)
    assert sorted(drawn) == sorted([*range(len(drawn) // 2)] * 2)


def test_sweeps_count_every_point_and_measure_the_ends_first():
    assert sweeps.ends_first(list(range(5))) == [0, 4, 2, 1, 3]
    assert sweeps.ends_first([7, 8]) == [7, 8]
    counted = [c for c in sweeps.cases(Scope(CPU)) if c.name.endswith("counted")]
    assert len(counted) == 13 + 5 + 9 + 3 + 8
    measured = [c.name for c in sweeps.cases(Scope(CPU)) if not c.name.endswith("counted")]
    assert measured[:5] == list(sweeps.axes("mbt_base"))


def test_what_is_swept_is_what_differs():
    layers = [t.config.fusion_layer for t in tasks("fusion_layer")]
    assert layers == list(range(13))
    frames = [t.config.input_size["rgb"][0] for t in tasks("span")]
    assert frames == [2, 4, 6, 8, 32]
    assert [t.config.n_bottlenecks for t in tasks("n_bottlenecks")] == [2**i for i in range(9)]
    modalities = [t.shape()["tokens"] for t in tasks("modalities")]
    assert modalities == [[785] * 2, [785] * 3, [785] * 4]
    assert [t.batch for t in tasks("batch")] == [2**i for i in range(8)]


def tasks(axis):
    return sweeps.tasks("mbt_base", sweeps.axes("mbt_base")[axis], torch.float32)


def test_exponents_of_the_counted_flops():
    """Pairwise attention grows with the square of the modalities, bottlenecks with their number."""
    timing = replace(TIMING, max_rounds=1)
    records = [
        record
        for case in sweeps.cases(Scope(CPU))
        if case.name == "modalities, counted"
        for record in measure_case("sweeps", case, timing, CEILINGS)
    ]
    found = {
        fit.variant: fit.exponent
        for fit in sweeps.fits(records)
        if fit.quantity == "attention_flops"
    }
    assert found["ours"] == pytest.approx(1)
    assert found["ours, vanilla own"] == found["ours, vanilla shared"] == pytest.approx(2)
    assert found["vanilla official"] == pytest.approx(3)


def test_steps_of_layer_and_model_reach_every_parameter():
    """A step that left gradients out would be too cheap."""
    task = Task("mbt_tiny", "step", 1, torch.float32)
    (built,), inputs = task.build([task.config], CPU)
    seen = []
    built.zero_grad = lambda set_to_none: seen.append([p.grad for p in built.parameters()])
    model.run(task, built, lambda: built(inputs))()
    assert all(grad is not None for grad in seen[0])
    one = Task("mbt_tiny", "step", 1, torch.float32, layer.ONE)
    for name, variant in layer.variants(one, SCOPE).items():
        if "compiled" not in name:
            assert all(grad is not None for grad in variant.run()), name


OURS = {torch.float32: 24, torch.bfloat16: 28}  # whose slots are averaged in float32


@pytest.mark.skipif(bool(native.why_no_cpu_kernels()), reason="the C++ kernels do not run here")
@pytest.mark.parametrize("dtype", OURS, ids=str)
def test_launches_of_a_layer(dtype, monkeypatch):
    """One attention and no joined streams, but more operators to share slots than eager takes."""
    monkeypatch.undo()  # poisoning fresh memory takes operators
    size = {"rgb": (8, 64, 64), "spectrogram": (128, 128)}  # so that the kernels are taken
    task = Task("mbt_small", "forward", 1, dtype, layer.ONE | {"input_size": size})
    variants = layer.variants(task, SCOPE)
    launches = {name: count_launches(variants[name].run, CPU) for name in ("ours", "eager")}
    assert launches == {"ours": OURS[dtype], "eager": 24}


@pytest.mark.skipif(bool(native.why_no_cpu_kernels()), reason="the C++ kernels do not run here")
def test_launches_of_a_layer_whose_streams_are_normed_and_summed_at_once(monkeypatch):
    """Attention, two norms, a sum with the slots; eight Linears and two GELU. Eager takes 24."""
    monkeypatch.undo()
    for op in ("add_layer_norm", "residual_add"):
        monkeypatch.setitem(dispatch.CPU_WINS_IN, op, {torch.float32: 0})
    size = {"rgb": (8, 64, 64), "spectrogram": (128, 128)}
    task = Task("mbt_small", "forward", 1, torch.float32, layer.ONE | {"input_size": size})
    assert count_launches(layer.variants(task, SCOPE)["ours"].run, CPU) == 14
