"""No baseline is slow, or fast, for being wrong; and what is counted of a layer."""

import pytest
import torch

from benchmarks import baselines, bench_layer, bench_sweeps, models
from mbt_fast import bottleneck_attention, dispatch
from mbt_fast.flops import forward_flops
from mbt_fast.ops import dispatch as ops_dispatch
from mbt_fast.ops import extension, min_sizes
from mbt_fast.profiling.runs import random_inputs

CPU, DOUBLE = torch.device("cpu"), torch.float64
FUSIONS = {
    "bottleneck": (baselines.bottleneck, {}),
    "vanilla own": (baselines.vanilla_own, models.VANILLA),
    "vanilla shared": (baselines.unimodal, models.VANILLA_SHARED),
    "vanilla official": (baselines.vanilla_official, models.VANILLA),
}


@pytest.mark.parametrize(("fuse", "overrides"), FUSIONS.values(), ids=FUSIONS)
def test_every_fusion_computes_what_our_model_computes(fuse, overrides):
    model = models.with_weights_of(models.build("mbt_tiny", DOUBLE, CPU), **overrides)
    inputs = random_inputs(model, 2)
    torch.testing.assert_close(baselines.forward(model, inputs, fuse), model(inputs))


@pytest.mark.parametrize("attend", [baselines.sdpa, baselines.padded_batch])
def test_attention_baselines_compute_what_ours_computes(attend):
    streams = [torch.randn(2, rows, 3, 2, 16, dtype=DOUBLE) for rows in (9, 5, 9)]
    expected = bottleneck_attention(streams, 4, backend="reference")
    torch.testing.assert_close(list(attend(*streams)), expected)


def test_a_compiled_layer_computes_the_same():
    model = models.build("mbt_tiny", torch.float32, CPU, **bench_layer.ONE)
    own, slots = bench_layer.tokens_of(model, 1)
    eager = baselines.bottleneck(model.layers[0], own, slots)
    compiled = torch.compile(baselines.bottleneck, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(model.layers[0], own, slots), eager)


def test_models_of_other_fusion_share_the_weights():
    model = models.build("mbt_tiny", torch.float32, CPU)
    other = models.with_weights_of(model, **models.VANILLA)
    assert other.config.fusion == "vanilla"
    assert other.head.weight is model.head.weight


def test_slots_are_shared_as_the_op_shares_them():
    sums = [torch.randn(2, rows, 3) for rows in (7, 5)]
    mean = torch.stack([x[:, -2:] for x in sums]).mean(dim=0)
    baselines.share_slots(sums, 2)
    assert all(torch.equal(x[:, -2:], mean) for x in sums)


def test_the_official_way_costs_more_than_the_equations_ask():
    config = bench_sweeps.config_at("fusion layer", 0, "ours, vanilla, own weights", "mbt_base")
    assert forward_flops(config, "official").total > 1.5 * forward_flops(config).total


def test_pairwise_attention_grows_with_the_square_of_the_modalities():
    """And that of bottlenecks with their number; as the official code computes it, the cube."""

    def grows(variant, cost="efficient"):
        two, four = (
            forward_flops(bench_sweeps.config_at("modalities", n, variant), cost).attention
            for n in (2, 4)
        )
        return four / two

    assert grows("ours") == pytest.approx(2)
    assert grows("ours, vanilla, own weights") == pytest.approx(4)
    assert grows("ours, vanilla, shared weights") == pytest.approx(4)
    assert grows(bench_sweeps.OFFICIAL, "official") == pytest.approx(8)


def test_points_of_a_sweep_have_the_flops_of_all_variants():
    batch = [bench_sweeps.flops_at("batch", n)["ours"] for n in bench_sweeps.AXES["batch"]]
    assert batch == [n * batch[0] for n in bench_sweeps.AXES["batch"]]
    assert bench_sweeps.flops_at("bottlenecks", 4).keys() == bench_sweeps.VARIANTS.keys()


ROWS = {"rgb": (8, 64, 64), "spectrogram": (128, 128)}  # so that the kernels are taken
OPERATORS = {torch.float32: 19, torch.bfloat16: 27}  # ours averages the slots in float32


@pytest.fixture
def amd(monkeypatch):
    """As if the CPU were one on whose like Linears are measured."""
    monkeypatch.undo()  # poisoning fresh memory takes operators
    monkeypatch.setattr(ops_dispatch, "_VENDOR", list(ops_dispatch.CPU_MEASURED_ON.values()))


def operators(dtype):
    """Of a layer of ours on ``cpu``, and of eager."""
    model = models.build("mbt_small", dtype, CPU, input_size=ROWS, **bench_layer.ONE)
    own, slots = bench_layer.tokens_of(model, 1)
    eager = bench_layer.stock(model, baselines.bottleneck, own, slots)
    both = (bench_layer.ours(model, own, slots), eager)
    return [bench_layer.count_operators(subject.forward()) for subject in both]


needs_kernels = pytest.mark.skipif(
    "no:" in dispatch.verdict(next(row for row in dispatch.BACKENDS if row.name == "cpu")),
    reason="the C++ kernels do not run here",
)


@needs_kernels
@pytest.mark.parametrize("dtype", OPERATORS, ids=str)
@pytest.mark.usefixtures("amd")
def test_operators_of_a_layer(dtype):
    """One attention and no joined streams, but more operators to share slots than eager takes."""
    assert operators(dtype) == [OPERATORS[dtype], 24]


@needs_kernels
@pytest.mark.usefixtures("amd")
def test_operators_of_a_layer_whose_streams_are_normed_and_summed_at_once(monkeypatch):
    """Attention, two norms, GELU, a sum with the slots; four times the Linears of both streams."""
    sizes = min_sizes.CPU_MIN_SIZE[extension.instruction_set()]
    for op in ("add_layer_norm", "residual_add"):
        monkeypatch.setitem(sizes, op, {torch.float32: 0})
    assert operators(torch.float32) == [9, 24]


def test_calls_in_python_are_those_of_the_library():
    streams = [torch.randn(1, 9, 3, 2, 16)]
    assert bench_layer.count_python_calls(lambda: None) == 0
    assert bench_layer.count_python_calls(lambda: bottleneck_attention(streams, 4)) > 3
