"""The table of backends: what it chooses, and what it says."""

import pytest
import torch
from backends import CALLS, DEVICE, DTYPES, NAMES, OwnCalls, needs_cpu_kernels, runs

from mbt_fast.functional import bias_gelu, residual_add
from mbt_fast.ops import dispatch, extension

CPU = torch.device("cpu")
EVERY = dispatch.EVERY


def row(name, ops=EVERY, **needs):
    """A row of a table made up."""
    return dispatch.Backend(name, frozenset(ops), **needs)


def call_of(op="bottleneck_attention", dtype=torch.float32, device=CPU, **sizes):
    """What dispatch is told of a call."""
    return dispatch.Call(op, device, dtype, **sizes)


def select(call, backend="auto"):
    """The name of the backend that runs a call."""
    return dispatch.select(call, backend).name


@pytest.fixture
def table(monkeypatch):
    """Puts rows in the place of the table."""

    def put(*rows):
        monkeypatch.setattr(dispatch, "_CANDIDATES", {})
        monkeypatch.setattr(dispatch, "BACKENDS", rows)

    return put


def test_contract_of_names():
    names = [row.name for row in dispatch.BACKENDS]
    assert names == ["cuda", "triton", "cpu", "sdpa", "reference"]


def test_auto_takes_the_first_row_without_reasons(table):
    table(row("first", device_type="cuda"), row("second"), row("third"))
    assert select(call_of()) == "second"
    assert select(call_of(), "third") == "third"
    with pytest.raises(dispatch.BackendError, match="device is cpu, needs cuda"):
        select(call_of(), "first")


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
    reasons = row("x", widths={"bottleneck_attention": {64, 128}}).reasons(call_of(width=80))
    assert reasons == ["head dimension is 80, needs 64 or 128"]


def test_a_row_may_have_a_most_of_channels():
    wide = row("x", {"wide", "other"}, max_width={"wide": 16})
    calls = [("wide", 16), ("wide", 17), ("wide", None), ("other", 17)]
    reason = "rows have 17 channels, and it takes at most 16"
    found = [wide.reasons(call_of(op, width=channels)) for op, channels in calls]
    assert found == [[], [reason], [], []]


def test_auto_takes_a_row_from_the_length_on_where_it_wins(table):
    table(row("kernel", min_size={"bottleneck_attention": {torch.float32: 32}}), row("stock"))
    short, long = call_of(size=31), call_of(size=32)
    assert select(short) == "stock"
    assert select(long) == "kernel"
    assert select(short, "kernel") == "kernel"
    assert dispatch.format_table(short).splitlines()[0] == (
        "  kernel     only by name: streams have at most 31 rows, and it wins from 32 on"
    )


def test_an_unmeasured_row_runs_by_name_only(table):
    table(row("new", unmeasured=True), row("old"))
    assert select(call_of()) == "old"
    assert select(call_of(), "new") == "new"
    new, old = dispatch.format_table(call_of()).splitlines()
    assert new.startswith("  new        only by name: no recorded measurement shows that it is not")
    assert old == "  old        yes, and auto takes it"


def test_auto_leaves_bfloat16_to_torch_where_it_has_amx_and_we_are_untried(monkeypatch):
    reason = "torch multiplies bfloat16 by AMX here"
    monkeypatch.setattr(dispatch, "_untried_in_bfloat16", lambda: reason)
    monkeypatch.setattr(dispatch, "_missing", lambda requirement: [])
    for dtype, taken in ((torch.bfloat16, "sdpa"), (torch.float32, "cpu")):
        call = call_of(dtype=dtype, size=199)
        assert select(call) == taken
        assert select(call, "cpu") == "cpu"
    assert select(call_of("bias_gelu", torch.bfloat16, size=2**20)) == "cpu"


@needs_cpu_kernels
def test_auto_takes_the_layer_kernels_where_they_win(monkeypatch):
    monkeypatch.setattr(dispatch, "_VENDOR", list(dispatch.CPU_MEASURED_ON.values()))
    for op, dtypes_from in dispatch.CPU_MIN_SIZE[extension.instruction_set()].items():
        for dtype in (*DTYPES, torch.float64):
            least = dtypes_from.get(dtype, 2**40)
            enough, few = (call_of(op, dtype, size=n) for n in (least, least - 1))
            assert (select(enough) == "cpu") == (dtype in dtypes_from)
            assert select(few) == "sdpa"
    small = call_of("bias_gelu", size=9)
    assert (
        "cpu        only by name: 9 elements gain from a kernel, and it wins from 65536"
        in dispatch.format_table(small)
    )
    assert select(small, "cpu") == "cpu"


def operators_of(run):
    """The operators of ours that a call reaches."""
    with OwnCalls() as own:
        run()
    return own.names


@needs_cpu_kernels
def test_auto_leaves_a_plain_sum_to_torch(monkeypatch):
    """There is nothing to fuse; with slots or dropped branches the kernel runs."""
    sizes = {"residual_add": {torch.float32: 1}}
    monkeypatch.setitem(dispatch.CPU_MIN_SIZE, extension.instruction_set(), sizes)
    xs = [torch.zeros(1, rows, 8) for rows in (9, 5)]
    keep = [torch.ones(1, dtype=torch.bool), None]
    for given in ({}, {"n_bottlenecks": 4}, {"keep": keep}):
        reached = operators_of(lambda given=given: residual_add(xs, xs, **given))
        assert reached == ["residual_add_fwd"] * bool(given)
    assert not operators_of(lambda: residual_add(xs[:1], xs[:1], n_bottlenecks=4))


@needs_cpu_kernels
def test_auto_leaves_gelu_with_erf_to_torch():
    x = torch.zeros(2**17)
    assert operators_of(lambda: bias_gelu(x)) == ["bias_gelu_fwd"]
    assert not operators_of(lambda: bias_gelu(x, approximate="none"))


def test_auto_passes_over_a_kernel_that_has_no_measurement_of_the_op(table):
    measured = row("kernel", launchers=dispatch, min_size={"other": {torch.float32: 1}})
    table(measured, row("stock"))
    assert select(call_of()) == "stock"
    assert select(call_of(), "kernel") == "kernel"
