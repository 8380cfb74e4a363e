"""Distributed wrappers on one process: what can be seen, and must be said, without a second one."""

import pytest
import torch
import torch.distributed as dist
from model_cases import int32, random_inputs, tiny
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mbt_fast import create_model, fuse


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fused_towers():
    layer = nn.TransformerEncoderLayer(16, 1, 16, dropout=0.0, norm_first=True, batch_first=True)
    towers = {m: nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) for m in ("a", "b")}
    return fuse(towers, 0, 2), {m: torch.randn(2, 3, 16) for m in towers}


def total(outs):
    return outs.sum() if isinstance(outs, torch.Tensor) else sum(x.sum() for x in outs.values())


MODELS = {"MBT": lambda: (tiny(), random_inputs()), "fuse": fused_towers}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


@models
def test_a_modality_left_out_on_one_rank_hung_the_others(make):
    model, inputs = make()
    first, second = inputs
    wrapped = DistributedDataParallel(model.train())
    wrapped(inputs)
    with pytest.raises(ValueError, match=rf"{second!r} on every rank .*, and 0 in lengths"):
        wrapped({first: inputs[first]})
    with torch.no_grad():
        wrapped({first: inputs[first]})
    with wrapped.no_sync():
        wrapped({first: inputs[first]})
    model({first: inputs[first]})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{second}." not in name)
    DistributedDataParallel(model)({first: inputs[first]})


class Student(nn.Module):
    """Learns from a teacher that has one modality less, and is no part of it."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teachers = student, [teacher]

    def forward(self, inputs):
        first = next(iter(inputs))
        taught = self.teachers[0]({first: inputs[first]})
        return total(self.student(inputs)) - total(taught)


@models
def test_evaluation_without_a_modality_was_refused(make):
    model, inputs = make()
    first, _ = inputs
    DistributedDataParallel(model.eval())({first: inputs[first]})
    teacher, _ = make()
    DistributedDataParallel(Student(model.train(), teacher.eval()))(inputs).backward()


@models
def test_a_modality_may_be_left_out_where_unused_parameters_are_looked_for(make):
    model, inputs = make()
    first, _ = inputs
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    for _ in range(2):  # the second waits for the first
        total(wrapped({first: inputs[first]})).backward()


@models
def test_a_modality_of_length_zero_takes_part_in_the_reduction(make):
    model, inputs = make()
    wrapped = DistributedDataParallel(model)
    _, second = inputs
    absent = {second: int32(*[0] * len(inputs[second]))}
    for _ in range(2):
        total(wrapped(inputs, absent)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_sharded_model_from_the_meta_device_draws_its_weights():
    with torch.device("meta"):
        model = create_model("mbt_tiny", fusion_layer=1)
    for layer in model.layers:
        for block in layer.values():
            fully_shard(block)
    fully_shard(model).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    model.reset_parameters()
    expected = create_model("mbt_tiny", fusion_layer=1).state_dict()
    for name, tensor in model.state_dict().items():
        own = tensor.full_tensor()
        assert own.isfinite().all(), name
        if expected[name].std() > 0:
            ratio = (own.std() / expected[name].std()).log().abs()
            assert ratio < 6 * own.numel() ** -0.5, name  # six times its standard error


@pytest.mark.parametrize("unit", ["Block", "Attention"])
def test_a_sharded_unit_was_never_gathered(unit):
    """FSDP2 gathers the weights of a module when it is called."""
    model, inputs = tiny().train(), random_inputs()
    names = [name for name, _ in model.named_parameters()]
    expected = torch.autograd.grad(model(inputs).square().sum(), list(model.parameters()))
    for layer in model.layers:
        for block in layer.values():
            fully_shard(block if unit == "Block" else block.attn)
    fully_shard(model)(inputs).square().sum().backward()
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(model.get_parameter(name).grad.full_tensor(), gradient)
