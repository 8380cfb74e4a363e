"""Predicted steps: what each way computes, holds, sends and hides."""

from dataclasses import replace

import pytest
from test_machine import PLAIN

from mbt_fast.parallel.machine import Hosts, all_reduce, gather
from mbt_fast.parallel.prediction import Predictor, deal, speed_limit
from mbt_fast.parallel.scaling import curve, end_of_scaling, worlds
from mbt_fast.parallel.work import Settings, Stream, Work

RGB = Stream(parameters=400, forward=400, both=1200, kept=30)
SOUND = Stream(parameters=500, forward=100, both=300, kept=10)
WORK = Work(
    parameters=1000,
    forward=500,
    both=1500,
    kept=40,
    fixed=8,
    units=(450, 450, 100),
    streams={"rgb": RGB, "spectrogram": SOUND},
    exchanges=2,
    slots=5,
)
SETTINGS = Settings(
    batch_size=16,
    micro_batch=None,
    virtual_devices=0,
    dtype="float32",
    states=1,
    passes=5,
    averaged=False,
)
FAST = replace(PLAIN, link=1e12, link_latency=0, network=1e12, network_latency=0, start=0)


def predictor(machine=PLAIN, work=WORK, **changes):
    return Predictor(work, replace(SETTINGS, **changes), machine)


def test_one_rank_computes_the_batch():
    step = predictor().alone(16)
    assert (step.forward, step.backward) == (16 * 500 / 50, 16 * 1000 / 50)
    assert step.update == 4 * 5 * 1000 / 1e3
    assert step.seen == step.wire.sent == 0
    assert step.seconds == 160 + 320 + 20
    assert step.memory == {
        "weights": 4000,
        "gradients": 4000,
        "optimizer": 4000,
        "activations": 8 + 16 * 40,
    }


@pytest.mark.parametrize("way", ["ddp", "fsdp", "modality"])
def test_world_that_does_not_divide_the_batch_cannot_be(way):
    assert getattr(predictor(), way)(Hosts(1, 7), 16) is None


def test_ddp_sums_every_gradient_and_hides_it_behind_the_backward():
    step = predictor().ddp(Hosts(1, 4), 16)
    assert step.wire == all_reduce(4 * 1000, Hosts(1, 4), PLAIN)
    assert step.clips == 4
    assert "buckets" not in step.memory, "they are the gradients"
    hidden = 0.5 * step.backward
    assert hidden > step.wire.seconds
    assert step.seen == step.wire.seconds, "one bucket: the only one is the last, which is seen"


def test_ddp_hides_all_buckets_but_the_last():
    work = replace(WORK, parameters=20 * 2**20)  # 80 MiB: 4 buckets of at most 25
    machine = replace(PLAIN, link=1e9, start=0, link_latency=0)
    step = predictor(machine, work).ddp(Hosts(1, 2), 16)
    assert step.wire.seconds == 80 * 2**20 / 1e9
    assert step.seen == pytest.approx(step.wire.seconds / 4)
    slow = predictor(replace(machine, link=1e5), work).ddp(Hosts(1, 2), 16)
    assert slow.seen == pytest.approx(slow.wire.seconds - 0.5 * slow.backward)


def test_only_the_last_micro_batch_hides_sums():
    work, machine = replace(WORK, parameters=20 * 2**20), replace(PLAIN, link=1e5)
    whole = predictor(machine, work).ddp(Hosts(1, 2), 16)
    quarters = predictor(machine, work, micro_batch=2).ddp(Hosts(1, 2), 16)
    assert quarters.seen - whole.seen == pytest.approx(0.5 * whole.backward * 3 / 4)
    assert quarters.memory["activations"] == 8 + 2 * 40


def test_nothing_is_hidden_where_each_virtual_device_clips_its_gradient():
    step = predictor(virtual_devices=8).ddp(Hosts(1, 4), 16)
    assert step.seen == step.wire.seconds
    assert step.memory["gradients"] == 2 * step.memory["weights"], "of a group, and their sum"
    assert step.memory["buckets"] == step.memory["weights"]
    one_each = predictor(virtual_devices=8).ddp(Hosts(1, 8), 16)
    assert one_each.memory["gradients"] == one_each.memory["weights"]
    assert predictor(virtual_devices=8).ddp(Hosts(1, 16), 16) is None
    assert predictor(virtual_devices=8).fsdp(Hosts(1, 4), 16) is None


def test_fsdp_gathers_in_both_passes_and_sums_once():
    world = Hosts(1, 4)
    step = predictor().fsdp(world, 16)
    root = gather(4 * 100, world, PLAIN)
    whole = gather(4 * 1000, world, PLAIN, 3)
    assert step.wire.sent == 3 * whole.sent - root.sent, "the root is gathered once"
    assert step.wire.seconds == pytest.approx(3 * whole.seconds - root.seconds)
    assert step.memory["weights"] == step.memory["optimizer"] == 1000
    assert step.update == pytest.approx(predictor().alone(16).update / 4)


def test_fsdp_gathers_in_the_dtype_of_autocast():
    machine = replace(PLAIN, peak={"bfloat16": 100.0}, efficiency={"bfloat16": 0.5})
    step = predictor(machine, dtype="bfloat16").fsdp(Hosts(1, 4), 16)
    sizes = (2 * 1000, 2 * 900, 4 * 1000)
    assert step.wire.sent == sum(gather(size, Hosts(1, 4), machine).sent for size in sizes)


def test_fsdp_gathers_anew_for_each_micro_batch():
    step = predictor(micro_batch=1).fsdp(Hosts(1, 4), 16)
    sizes = 4 * [1000, 900] + [1000]
    assert step.wire.sent == sum(gather(4 * size, Hosts(1, 4), PLAIN).sent for size in sizes)
    assert step.memory["gathered"] > 4 * 1000, "gradients that are not summed yet"


def test_share_that_was_counted_is_what_is_held():
    work = replace(WORK, shares={4: 300})
    assert predictor(work=work).fsdp(Hosts(1, 4), 16).memory["weights"] == 1200


def test_modalities_apart_take_the_time_of_the_slowest_and_exchange_slots():
    step = predictor(FAST).modality(Hosts(1, 2), 16)
    assert step.plan == (1, 1)
    assert step.forward + step.backward == 16 * 1200 / 50
    assert step.memory["weights"] == 4 * (400 + 100)
    slots = all_reduce(4 * 5 * 16 * 2 * 2, Hosts(1, 2), FAST)  # 2 layers, 2 passes
    shared = all_reduce(4 * 100, Hosts(1, 2), FAST)
    assert step.wire.sent == slots.sent + shared.sent


def test_ranks_are_dealt_to_who_has_most_to_do():
    streams = [RGB, SOUND]
    assert [deal(streams, n) for n in (2, 4, 5, 8)] == [(1, 1), (3, 1), (4, 1), (6, 2)]
    flops = [stream.both for stream in streams]
    assert speed_limit(flops, (1, 1)) == 1500 / 1200
    assert speed_limit(flops, (4, 1)) == 5


def test_modality_parallelism_goes_on_where_a_rank_has_one_clip():
    assert predictor().ddp(Hosts(4, 8), 16) is None
    step = predictor().modality(Hosts(4, 8), 16)
    assert (step.ranks, step.clips, sum(step.plan)) == (32, 1, 2)


def test_several_ranks_of_a_modality_sum_their_gradients():
    """5 ranks: 4 for rgb, which share the clips of the group."""
    rgb = replace(RGB, both=1300)  # of 4 clips a little more than 300 of 16
    work = replace(WORK, streams={"rgb": rgb, "spectrogram": SOUND})
    step = predictor(FAST, work).modality(Hosts(1, 5), 16)
    assert (step.plan, step.clips) == ((4, 1), 4)
    replicas = all_reduce(4 * 400, Hosts(1, 4), FAST)
    assert step.wire.sent > replicas.sent
    assert step.forward + step.backward == 4 * 1300 / 50


def test_worlds_are_doubled_up_to_1024():
    sizes = [world.size for world in worlds(8)]
    assert sizes == [2**power for power in range(11)]
    assert [str(world) for world in worlds(6, most=24)] == [
        "1x1",
        "1x2",
        "1x4",
        "1x6",
        "2x6",
        "4x6",
    ]


def test_curve_without_wire_and_update_is_perfect():
    rows = curve(predictor(FAST, passes=0), list(worlds(8, most=16)))
    assert [row.efficiency["ddp"] for row in rows] == pytest.approx([1.0] * 5)
    assert end_of_scaling(rows) == (rows[-1], None)


def test_scaling_ends_where_half_the_speed_is_lost():
    rows = curve(predictor(replace(PLAIN, network_latency=1e4)), list(worlds(8, most=16)))
    last, first = end_of_scaling(rows)
    assert (last.world.size, first.world.size) == (8, 16)
    assert first.efficiency["ddp"] < 0.5 <= last.efficiency["ddp"]


def test_batch_that_grows_with_the_world_never_ends_it():
    rows = curve(predictor(), list(worlds(8)), clips=2)
    assert [row.steps["ddp"].batch_size for row in rows] == [2 * 2**power for power in range(11)]
    assert curve(predictor(), list(worlds(8)))[-1].steps["ddp"] is None


def test_more_of_anything_is_never_quicker():
    base = predictor().ddp(Hosts(2, 4), 16).seconds
    for name in ("link_latency", "network_latency", "start"):
        slower = replace(PLAIN, **{name: 2 * getattr(PLAIN, name)})
        assert predictor(slower).ddp(Hosts(2, 4), 16).seconds > base
    for name in ("network", "memory_bandwidth"):
        slower = replace(PLAIN, **{name: getattr(PLAIN, name) / 2})
        assert predictor(slower).ddp(Hosts(2, 4), 16).seconds > base
