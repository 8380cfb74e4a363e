"""What a model takes is counted without computing it, and is what really happens."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from test_machine import PLAIN
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import mbt_fast
from mbt_fast import flops
from mbt_fast.errors import InputError
from mbt_fast.parallel import counting
from mbt_fast.parallel.activations import kept_bytes
from mbt_fast.parallel.counting import work_of
from mbt_fast.parallel.machine import Hosts, all_reduce
from mbt_fast.parallel.prediction import Predictor
from mbt_fast.parallel.sharded import held_parameters
from mbt_fast.parallel.traffic import traffic
from mbt_fast.parallel.work import Settings, Work

NEEDS_SHARDED_LAYERS = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
    reason="FSDP2 of torch 2.11 shards no FusionLayer",
)
TINY = mbt_fast.create_model("mbt_tiny").config


@contextmanager
def fake_group(world):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def storages(tensors):
    return {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["none", "norms", "mlp"])
def test_kept_bytes_are_those_of_a_real_forward(recompute, dtype):
    model = mbt_fast.MBT(TINY).set_execution(recompute=recompute).eval()
    inputs = {m: torch.randn(4, *model.embedding(m).input_shape) for m in TINY.modalities}
    saved = []
    with (
        saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype is not torch.float32),
    ):
        logits = model.forward_modalities(inputs)
    given = storages([*model.parameters(), *inputs.values()])
    really = sum(size for key, size in storages(saved).items() if key not in given)
    counted = kept_bytes(TINY, 4, dtype, recompute=recompute, backend="auto")
    assert logits
    assert counted == really


def meta_model():
    with torch.device("meta"):
        return mbt_fast.MBT(TINY)


@pytest.mark.parametrize("world", [1, 3, 128])
def test_share_of_a_rank_is_that_of_its_rows(world):
    expected = sum(-(-len(p) // world) * p[0].numel() for p in meta_model().parameters())
    assert held_parameters(meta_model(), world) == expected
    assert not dist.is_initialized()


class Sizes(TorchDispatchMode):
    """Bytes of what collectives gather and sum."""

    def __init__(self):
        super().__init__()
        self.gathered, self.summed = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered.append(args[0].nbytes)
        if func is torch.ops.c10d._reduce_scatter_base_.default:
            self.summed.append(args[1].nbytes)
        return func(*args, **(kwargs or {}))


@NEEDS_SHARDED_LAYERS
def test_fsdp_gathers_and_sums_what_is_predicted():
    """A real step on the backend that sends nothing; rows are padded to the number of ranks."""
    world = 4
    with fake_group(world):
        model = mbt_fast.MBT(TINY)
        padded = [
            sum(-(-len(p) // world) * world * p[0].numel() for p in layer.parameters())
            for layer in (*model.layers, model)
        ]
        units = (*padded[:-1], padded[-1] - sum(padded[:-1]))
        for layer in (*model.layers, model):
            fully_shard(layer)
        inputs = {m: torch.randn(1, *model.embedding(m).input_shape) for m in TINY.modalities}
        with Sizes() as sizes:
            model(inputs).sum().backward()
    work = Work(sum(units), 1, 3, 0, 0, units)
    settings = Settings(world, None, 0, "float32", 1, 5, averaged=False)
    sent = Predictor(work, settings, PLAIN).fsdp(Hosts(1, world), world).wire.sent
    assert len(sizes.gathered) == 2 * len(units) - 1
    assert sum(sizes.gathered + sizes.summed) * (world - 1) / world == sent


def test_predicted_bytes_are_those_of_the_closed_forms():
    """Which ``test_traffic.py`` holds to the collectives that ranks really call."""
    clips, both = 6, Hosts(1, 2)
    work = work_of(TINY, torch.float32, 2, recompute="norms", backend="auto")
    settings = Settings(clips, None, 0, "float32", 1, 5, averaged=False)
    predictor = Predictor(work, settings, PLAIN)
    forms = traffic(TINY, ranks=2, clips=clips, width=4)
    assert predictor.ddp(both, clips).wire.sent == sum(c.sent for c in forms["DDP"])
    by_what = {c.what: c.sent for c in forms["modality"]}
    shared = all_reduce(4 * work.shared, both, PLAIN).sent
    assert predictor.modality(both, clips).wire.sent - shared == by_what["slots"]
    flags = 2 * 4 * 5 / 2  # who has a gradient of each of 5 parameters, which is not predicted
    assert by_what["gradients of what all share"] == shared + flags


def test_plan_inside_a_group_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=(tmp_path / "s").as_uri(), rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match="planned by one process, without torchrun"):
            held_parameters(meta_model(), 2)
    finally:
        dist.destroy_process_group()


def test_work_adds_up():
    work = work_of(TINY, torch.float32, 8, recompute="norms", backend="auto")
    model = meta_model()
    assert work.parameters == sum(work.units) == sum(p.numel() for p in model.parameters())
    assert work.shared == sum(
        p.numel()
        for name, p in model.named_parameters()
        if not {*TINY.modalities} & {*name.split(".")}
    )
    assert sum(stream.forward for stream in work.streams.values()) == work.forward
    assert sum(stream.both for stream in work.streams.values()) == work.both
    assert work.forward == flops.forward_flops(TINY).total
    own = sum(TINY.n_tokens(m) for m in TINY.modalities)
    with_slots = own + TINY.n_slots * len(TINY.modalities)
    without_slots = sum(stream.kept for stream in work.streams.values())
    assert work.kept * own / with_slots < without_slots < work.kept
    assert work.slots == TINY.n_bottlenecks * TINY.hidden_size + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "vanilla"},
        {"share_encoder": True},
        {"modalities": ("rgb",)},
        {"classifier": "gap"},
        {"update_order": ("rgb", "spectrogram")},
    ],
)
def test_modalities_that_meet_elsewhere_have_no_streams(changes, monkeypatch):
    monkeypatch.setattr(counting, "kept_bytes", lambda *_, **__: 0)
    config = TINY.replace(**changes)
    assert not work_of(config, torch.float32, 2, recompute="norms", backend="auto").streams


@pytest.mark.parametrize("modality", TINY.modalities)
def test_flops_of_a_stream_are_those_that_torch_counts(modality):
    """Of a model whose only modality it is, with as many tokens."""
    alone = TINY.replace(modalities=(modality,))
    assert flops.stream_flops(alone, modality) == flops.forward_flops(alone)
    with pytest.raises(ValueError, match="blocks of their own"):
        flops.stream_flops(TINY.replace(fusion="vanilla"), modality)
