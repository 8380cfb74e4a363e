"""Training on several ranks is the training of one process, with the same batch."""

import pytest
import torch
from modality_cases import batch_of, model_of
from ranks import run
from training import assert_same_records, assert_same_tensors, joined, together, trained

from mbt_fast.parallel.data_parallel import wrap
from mbt_fast.parallel.ranks import start
from mbt_fast.testing import assert_close_to_exact

ALL = ["augment.mixup=0.3", "augment.flip=0.5", "augment.modality_dropout=0.2"]
ALL += ["augment.time_mask=4", "augment.time_masks=1", "model.stochastic_depth=0.3"]
SHARDED = "train.parallel=fsdp"
ADAMW = ["train.optimizer=adamw", "train.lr=0.001", "train.weight_decay=0.1", "train.ema=0.5"]
CLIPPED = "train.clip_norm=0.5"
# Whatever the ranks: virtual devices draw for themselves; without them nothing is drawn.
CASES = {
    "adamw": [*ADAMW, CLIPPED],
    "adamw, sharded": [*ADAMW, CLIPPED, SHARDED],
    "virtual devices": ["train.virtual_devices=4", CLIPPED, *ALL],
}
OTHERS = {
    "micro-batches": ["train.micro_batch=1"],
    "micro-batches, sharded": ["train.micro_batch=1", SHARDED],
    "loss of the mean logits": ["train.loss=mean_logits", CLIPPED],
    "vanilla, gap": ["model.fusion=vanilla", "model.classifier=gap"],
    "vanilla, gap, sharded": ["model.fusion=vanilla", "model.classifier=gap", SHARDED],
}


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """What one process does, without torch.distributed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield together(CASES | OTHERS, recipe, tmp_path_factory.mktemp("alone"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("world", "cases"),
    [(2, CASES | OTHERS), pytest.param(4, CASES, marks=pytest.mark.slow)],
    ids=["two ranks", "four ranks"],
)
def test_training_is_that_of_one_process(alone, recipe, tmp_path, world, cases):
    results = run(world, together, cases, recipe, tmp_path)
    for name in cases:
        records, tensors = joined([result[name] for result in results])
        expected_records, expected = joined([alone[name]])
        assert len(records) == 5
        assert_same_records(records, expected_records)
        assert_same_tensors(tensors, expected, name)


def test_ranks_share_a_cache_of_decoded_clips(recipe, tmp_path):
    fixed = ["augment.window=centre", "augment.crop=centre"]
    filled = [*fixed, f"data.cache={tmp_path / 'cache'}"]
    results = run(2, together, {"filled": filled}, recipe, tmp_path / "ranks")
    plain = together({"plain": fixed}, recipe, tmp_path / "alone")
    records, tensors = joined([result["filled"] for result in results])
    expected_records, expected = joined([plain["plain"]])
    assert_same_records(records, expected_records)
    assert_same_tensors(tensors, expected, "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


def half(recipe, out):
    """The first step in bfloat16, replicated and sharded."""
    first = ["train.steps=1", "train.dtype=bfloat16"]
    cases = {"ddp": first, "fsdp": [*first, SHARDED]}
    dtype = torch.float32
    return {how: trained(recipe, given, out / how, dtype=dtype) for how, given in cases.items()}


def test_sharded_weights_in_bfloat16_are_as_good_as_autocast(recipe, tmp_path):
    results = run(2, half, recipe, tmp_path)
    (_, eager), (_, actual) = (joined([r[how] for r in results]) for how in ("ddp", "fsdp"))
    _, exact = joined([trained(recipe, ["train.steps=1"], tmp_path / "exact")])
    gradients = [name for name in exact if name.startswith("gradient")]
    for name in gradients:
        assert actual[name].dtype == torch.float32, "summed and kept in float32"
        # A rank's own gradients are in bfloat16, as the weights are that it has gathered.
        pair = actual[name].bfloat16(), eager[name].bfloat16()
        assert_close_to_exact(*pair, exact[name], name=name)


def memory_of_gradients():
    with start("cpu") as ranks:
        model = model_of()
        replica = wrap(model, ranks)
        for _ in range(2):
            model.zero_grad()
            sum(x.sum() for x in replica(batch_of()[0], None).values()).backward()
        grads = [parameter.grad for parameter in model.parameters()]
        held = {grad.untyped_storage().data_ptr() for grad in grads}
        return len(held), len(grads)


def test_gradients_are_not_kept_twice():
    """DDP keeps what it sums in few buckets, beside the gradients if these are not views of it."""
    for held, grads in run(2, memory_of_gradients):
        assert held < grads / 4
