"""The table of backends: what it chooses, and what it says."""

from pathlib import Path

import pytest
import torch
from backends import CALLS, DEVICE, DTYPES, NAMES, OwnCalls, needs_cpu_kernels, runs

from benchmarks import record
from mbt_fast import dispatch
from mbt_fast.functional import residual_add

CPU = torch.device("cpu")
EVERY = dispatch.EVERY  # ops of attention


def row(name, ops=EVERY, **needs):
    """A row of a table made up."""
    return dispatch.Backend(name, frozenset(ops), **needs)


def call_of(op="bottleneck_attention", dtype=torch.float32, device=CPU, **sizes):
    """What dispatch is told of a call."""
    return dispatch.Call(op, device, dtype, **sizes)


@pytest.fixture
def table(monkeypatch):
    """Puts rows in the place of the table."""
    return lambda *rows: monkeypatch.setattr(dispatch, "BACKENDS", rows)


def test_contract_of_names():
    names = [row.name for row in dispatch.BACKENDS]
    assert names == ["cuda", "triton", "cpu", "sdpa", "reference"]


def test_auto_takes_the_first_row_without_reasons(table):
    table(row("first", device_type="cuda"), row("second"), row("third"))
    assert dispatch.select(call_of()) == "second"
    assert dispatch.select(call_of(), "third") == "third"
    with pytest.raises(dispatch.BackendError, match="device is cpu, needs cuda"):
        dispatch.select(call_of(), "first")


@pytest.mark.parametrize(
    ("op", "backend"), [(op, name) for op in CALLS for name in NAMES if not runs(name, op)]
)
def test_a_named_backend_that_cannot_run_raises_with_the_whole_table(op, backend):
    x = torch.zeros(1, 1, 16, device=DEVICE)
    with pytest.raises(dispatch.BackendError, match=f"{backend!r} cannot run this call") as error:
        CALLS[op](x, backend)
    assert all(f"\n  {name}" in str(error.value) for name in NAMES)


def test_a_row_answers_with_every_reason():
    other = row("x", {"other"}, device_type="cuda", dtypes=frozenset({torch.float16}))
    assert other.reasons(call_of()) == [
        "it does not implement bottleneck_attention",
        "device is cpu, needs cuda",
        "dtype is torch.float32, needs torch.float16",
    ]
    assert other.reasons(None) == []


@pytest.mark.parametrize(("have", "reasons"), [((9, 0), 0), ((8, 0), 1), ((10, 0), 1)])
def test_machine_code_for_one_architecture_runs_on_no_other(monkeypatch, have, reasons):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: have)
    hopper = row("x", device_type="cuda", major=9)
    expected = [f"compute capability is {have[0]}.0, needs 9.x"]
    assert hopper.reasons(call_of(device=torch.device("cuda"))) == expected[:reasons]


def test_a_head_dimension_without_a_kernel_is_a_reason():
    reasons = row("x", head_dims=frozenset({64, 128})).reasons(call_of(head_dim=80))
    assert reasons == ["head dimension is 80, needs 64 or 128"]


def test_a_row_may_have_a_most_of_channels():
    wide = row("x", {"wide", "other"}, most_channels={"wide": 16})
    calls = [("wide", 16), ("wide", 17), ("wide", None), ("other", 17)]
    reason = "rows have 17 channels, and it takes at most 16"
    found = [wide.reasons(call_of(op, channels=channels)) for op, channels in calls]
    assert found == [[], [reason], [], []]


def test_auto_takes_a_row_from_the_length_on_where_it_wins(table):
    table(row("kernel", wins_from={torch.float32: 32}), row("stock"))
    short, long = call_of(rows=31), call_of(rows=32)
    assert dispatch.select(short) == "stock"
    assert dispatch.select(long) == "kernel"
    assert dispatch.select(short, "kernel") == "kernel"
    assert dispatch.format_table(short).splitlines()[0] == (
        "  kernel     only by name: streams have at most 31 rows, and it wins from 32 on"
    )


def test_a_reserved_row_runs_by_name_only(table):
    table(row("new", unmeasured=True), row("old"))
    assert dispatch.select(call_of()) == "old"
    assert dispatch.select(call_of(), "new") == "new"
    assert dispatch.format_table(call_of()).splitlines() == [
        "  new        only by name: no recorded measurement shows that it is not slower than sdpa",
        "  old        yes, and auto takes it",
    ]


def test_auto_leaves_bfloat16_to_torch_where_it_has_amx_and_we_are_untried(monkeypatch):
    reason = "torch multiplies bfloat16 by AMX here"
    monkeypatch.setattr(dispatch, "_untried_in_bfloat16", lambda: reason)
    monkeypatch.setattr(dispatch, "_missing", lambda requirement: [])
    for dtype, taken in ((torch.bfloat16, "sdpa"), (torch.float32, "cpu")):
        call = call_of(dtype=dtype, rows=199)
        assert dispatch.select(call) == taken
        assert dispatch.select(call, "cpu") == "cpu"
    assert dispatch.select(call_of("bias_gelu", torch.bfloat16, elements=2**20)) == "cpu"


@needs_cpu_kernels
def test_auto_takes_the_layer_kernels_where_they_win():
    for op, dtypes_from in dispatch.CPU_WINS_IN.items():
        for dtype in (*DTYPES, torch.float64):
            least = dtypes_from.get(dtype, 2**40)
            enough, few = (call_of(op, dtype, elements=n) for n in (least, least - 1))
            assert (dispatch.select(enough) == "cpu") == (dtype in dtypes_from)
            assert dispatch.select(few) in ("sdpa", "reference")
    small, erf = call_of("bias_gelu", elements=9), call_of("bias_gelu_erf")
    assert (
        "cpu        only by name: the call has 9 elements, and it wins from 65536"
        in dispatch.format_table(small)
    )
    assert "cpu        only by name: bias_gelu_erf in torch.float32" in dispatch.format_table(erf)
    assert dispatch.select(small, "cpu") == dispatch.select(erf, "cpu") == "cpu"


@needs_cpu_kernels
def test_auto_leaves_a_plain_sum_to_torch(monkeypatch):
    """There is nothing to fuse; with slots or dropped branches the kernel runs."""
    monkeypatch.setitem(dispatch.CPU_WINS_IN, "residual_add", {torch.float32: 0})
    xs = [torch.zeros(1, rows, 8) for rows in (9, 5)]
    keep = [torch.ones(1, dtype=torch.bool), None]
    for given in ({}, {"n_bottlenecks": 4}, {"keep": keep}):
        with OwnCalls() as own:
            residual_add(xs, xs, **given)
            residual_add(xs[:1], xs[:1], n_bottlenecks=4)
        assert own.names == ["residual_add_fwd"] * bool(given)


RESULTS = Path(__file__).parents[2] / "benchmarks/results"
ATTENTION = [path for path in RESULTS.glob("cpu-*/*.json") if path.stem.endswith("attention")]
LAYER = sorted(RESULTS.glob("*/layer_ops.json"))
CASES_OF = {
    "bias_gelu": "gelu tanh",
    "bias_gelu_erf": "gelu none",
    "add_layer_norm": "layer_norm",
    "residual_add": "residual",
}


def recorded(path):
    """Comparisons of our CPU kernels with torch in a record."""
    return record.load(path).select(variant="ours, cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_auto_takes_the_cpu_kernels_where_every_record_shows_that_they_win(dtype):
    """And from no later on: at the longest streams below, some record shows a loss."""
    (cpu,) = (row for row in dispatch.BACKENDS if row.name == "cpu")
    name = str(dtype).removeprefix("torch.")
    ours = [r for path in ATTENTION for r in recorded(path) if r.dtype == name]
    assert len(ours) > 160
    loses = {max(r.shape["rows"]) for r in ours if r.ratio.reported < 1}
    lengths = {max(r.shape["rows"]) for r in ours}
    assert cpu.wins_from[dtype] == min(length for length in lengths if length > max(loses))


@pytest.mark.parametrize("path", LAYER, ids=lambda path: path.parent.name)
def test_auto_takes_only_layer_kernels_that_were_recorded_to_win(path):
    records = recorded(path)
    for op, dtypes_from in dispatch.CPU_WINS_IN.items():
        for dtype in dtypes_from:
            name = str(dtype).removeprefix("torch.")
            found = [r for r in records if CASES_OF[op] in r.case and r.dtype == name]
            assert found
            assert min(r.ratio.reported for r in found) > 1, (op, dtype)


def test_explain_takes_the_arguments_of_the_op():
    qkv = [torch.zeros(1, 9, 3, 2, 16, dtype=torch.float64)]
    text = dispatch.explain(qkv, 4, lengths=None, update="mean", return_lse=True, backend="triton")
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["sdpa"].endswith("yes, and auto takes it")
    assert lines["reference"].endswith("yes")
    assert "dtype is torch.float64" in lines["triton"]
    assert "device is cpu, needs cuda" in lines["cuda"]
    assert "head dimension is 16, needs 64 or 128" in lines["cuda"]
    assert "device" not in dispatch.explain()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (([torch.zeros(3)], 4), {}),
        ((torch.zeros(1, 9, 3, 2, 16), 4), {}),
        ((), {"backend": "fast"}),
    ],
)
def test_explain_refuses_what_the_op_refuses(arguments, options):
    with pytest.raises((TypeError, ValueError), match="must"):
        dispatch.explain(*arguments, **options)


def test_explain_sees_autocast():
    qkv = [torch.zeros(1, rows, 3, 2, 16) for rows in (5, 9)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "dtype is torch.float32" not in dispatch.explain(qkv, 4)
    assert "dtype is torch.float32" in dispatch.explain(qkv, 4)


@needs_cpu_kernels
def test_explain_sees_the_longest_stream():
    qkv = [torch.zeros(1, rows, 3, 2, 16) for rows in (5, 9)]
    assert "streams have at most 9 rows" in dispatch.explain(qkv, 4)


def test_implements_asks_for_the_op_and_not_for_the_machine():
    assert dispatch.implements("triton", "bottleneck_attention")
    assert dispatch.implements("triton", "bias_gelu")
    assert not dispatch.implements("triton", "bias_gelu_erf")
    assert not dispatch.implements("triton", "dense_attention")
    assert dispatch.implements("sdpa", "dense_attention")
    assert dispatch.implements("auto", "dense_attention")
