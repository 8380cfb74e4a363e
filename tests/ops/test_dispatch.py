"""The table of backends: what it chooses, and what it says."""

import pytest
import torch

from mbt_fast import dispatch

CALL = dispatch.Call("bottleneck_attention", torch.device("cpu"), torch.float32)


def test_auto_takes_the_first_row_without_reasons(monkeypatch):
    rows = (
        dispatch.Backend("first", dispatch.EVERY, device_type="cuda"),
        dispatch.Backend("second", dispatch.EVERY),
        dispatch.Backend("third", dispatch.EVERY),
    )
    monkeypatch.setattr(dispatch, "BACKENDS", rows)
    assert dispatch.select(CALL) == "second"
    assert dispatch.select(CALL, "third") == "third"
    with pytest.raises(dispatch.BackendError, match="device is cpu, needs cuda"):
        dispatch.select(CALL, "first")


def test_a_row_answers_with_every_reason():
    row = dispatch.Backend("x", frozenset({"other"}), "cuda", frozenset({torch.float16}))
    assert row.reasons(CALL) == [
        "it does not implement bottleneck_attention",
        "device is cpu, needs cuda",
        "dtype is torch.float32, needs torch.float16",
    ]
    assert row.reasons(None) == []


@pytest.mark.parametrize(("have", "reasons"), [((9, 0), 0), ((8, 0), 1), ((10, 0), 1)])
def test_machine_code_for_one_architecture_runs_on_no_other(monkeypatch, have, reasons):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: have)
    row = dispatch.Backend("x", dispatch.EVERY, "cuda", major=9, head_dims=frozenset({64, 128}))
    call = dispatch.Call(CALL.op, torch.device("cuda"), torch.float16, head_dim=64)
    expected = [f"compute capability is {have[0]}.0, needs 9.x"]
    assert row.reasons(call) == expected[:reasons]


def test_a_head_dimension_without_a_kernel_is_a_reason():
    row = dispatch.Backend("x", dispatch.EVERY, head_dims=frozenset({64, 128}))
    call = dispatch.Call.of(CALL.op, [torch.zeros(1, 9, 3, 2, 80)])
    assert row.reasons(call) == ["head dimension is 80, needs 64 or 128"]


def test_auto_takes_a_row_from_the_length_on_where_it_wins(monkeypatch):
    rows = (
        dispatch.Backend("kernel", dispatch.EVERY, wins_from={torch.float32: 32}),
        dispatch.Backend("stock", dispatch.EVERY),
    )
    monkeypatch.setattr(dispatch, "BACKENDS", rows)
    short, long = ([torch.zeros(1, n, 3, 2, 16)] for n in (31, 32))
    short, long = (dispatch.Call.of("bottleneck_attention", qkv) for qkv in (short, long))
    assert dispatch.select(short) == "stock"
    assert dispatch.select(long) == "kernel"
    assert dispatch.select(short, "kernel") == "kernel"
    assert dispatch.format_table(short).splitlines()[0] == (
        "  kernel     only by name: streams have at most 31 rows, and it wins from 32 on"
    )


def test_a_row_may_have_a_most_of_channels():
    row = dispatch.Backend("x", frozenset({"wide", "other"}), most_channels={"wide": 16})
    calls = [
        dispatch.Call(op, CALL.device, CALL.dtype, channels=channels)
        for op, channels in (("wide", 16), ("wide", 17), ("wide", None), ("other", 17))
    ]
    reason = "rows have 17 channels, and it takes at most 16"
    assert [row.reasons(call) for call in calls] == [[], [reason], [], []]


def test_auto_leaves_bfloat16_to_torch_where_it_has_amx_and_we_are_untried(monkeypatch):
    reason = "torch multiplies bfloat16 by AMX here"
    monkeypatch.setattr(dispatch, "_untried_in_bfloat16", lambda: reason)
    monkeypatch.setattr(dispatch, "_missing", lambda requirement: [])
    for dtype, taken in ((torch.bfloat16, "sdpa"), (torch.float32, "cpu")):
        call = dispatch.Call("bottleneck_attention", torch.device("cpu"), dtype, rows=199)
        assert dispatch.select(call) == taken
        assert dispatch.select(call, "cpu") == "cpu"
    gelu = dispatch.Call("bias_gelu", torch.device("cpu"), torch.bfloat16, elements=2**20)
    assert dispatch.select(gelu) == "cpu"


def test_contract_of_names():
    names = [row.name for row in dispatch.BACKENDS]
    assert names == ["cuda", "triton", "cpu", "sdpa", "reference"]


def test_a_reserved_row_runs_by_name_only(monkeypatch):
    rows = (
        dispatch.Backend("new", dispatch.EVERY, unmeasured=True),
        dispatch.Backend("old", dispatch.EVERY),
    )
    monkeypatch.setattr(dispatch, "BACKENDS", rows)
    assert dispatch.select(CALL) == "old"
    assert dispatch.select(CALL, "new") == "new"
    assert dispatch.format_table(CALL).splitlines() == [
        "  new        only by name: no recorded measurement shows that it is not slower than sdpa",
        "  old        yes, and auto takes it",
    ]


def test_explain_takes_the_arguments_of_the_op():
    qkv = [torch.zeros(1, 9, 3, 2, 16, dtype=torch.float64)]
    text = dispatch.explain(qkv, 4, lengths=None, update="mean", return_lse=True, backend="triton")
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["sdpa"].endswith("yes, and auto takes it")
    assert lines["reference"].endswith("yes")
    assert "dtype is torch.float64" in lines["triton"]
    assert "device is cpu, needs cuda" in lines["cuda"]
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
    qkv = [torch.zeros(1, 9, 3, 2, 16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "dtype is torch.float32" not in dispatch.explain(qkv, 4)
        assert dispatch.Call.of("bottleneck_attention", qkv).dtype == torch.bfloat16


def test_implements_asks_for_the_op_and_not_for_the_machine():
    assert dispatch.implements("triton", "bottleneck_attention")
    assert dispatch.implements("triton", "bias_gelu")
    assert not dispatch.implements("triton", "bias_gelu_erf")
    assert not dispatch.implements("triton", "dense_attention")
    assert dispatch.implements("sdpa", "dense_attention")
    assert dispatch.implements("auto", "dense_attention")
