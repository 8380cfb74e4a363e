"""One step of the optimizer: parts of a batch add up to what the whole batch gives."""

import pytest
import torch

from mbt_fast.testing import assert_close_to_exact
from mbt_fast.train.dataset import TrainingClips, collate_items
from mbt_fast.train.loop import Loop
from mbt_fast.train.order import Key, generator
from mbt_fast.train.parts import build_parts, read_data
from mbt_fast.train.stopping import Stopping

PLAIN = (
    *("augment.mixup=0.0", "augment.flip=0.0", "model.stochastic_depth=0.0"),
    *("train.batch_size=4", "augment.label_smoothing=0.1"),
)


@pytest.fixture
def step(configure, tmp_path):
    """Gradients and record of the first step of a run on some of eight clips."""

    def run(*overrides, clips=range(4), dtype=torch.float32):
        config = configure(*PLAIN, f"train.batch_size={len(clips)}", *overrides)
        data = read_data(config)
        parts = build_parts(config.with_num_classes(len(data.names)), data)
        draws = generator(0, "head")  # which would be zero, and let no gradient through
        torch.nn.init.normal_(parts.model.head.weight, std=0.3, generator=draws)
        parts.model.to(dtype)
        loop = Loop(parts, tmp_path / "run", Stopping())
        augment, gradients = loop.augment, {}

        def widened(*batch):
            batch = augment(*batch)
            return batch._replace(inputs={m: x.to(dtype) for m, x in batch.inputs.items()})

        def take():
            gradients.update({n: p.grad.clone() for n, p in parts.model.named_parameters()})

        loop.augment, loop.optimizer.step = widened, take
        batch = batch_of(data.train, parts.transform, config.augment, clips)
        assert batch.lengths is not None, "one of the clips has no sound"
        record = loop._step(0, batch)
        loop.close()
        return gradients, record

    (tmp_path / "run").mkdir()
    return run


def batch_of(manifest, transform, augment, chosen):
    """A batch of clips that can be read, counted with one without sound first."""
    clips = TrainingClips(manifest, transform, manifest.label_names(), "single", augment, seed=0)
    items = [clips[Key(0, index, index)] for index in range(len(manifest))]
    items = [item for item in items if not item.broken]
    silent = [item for item in items if "spectrogram" not in item.clip.inputs]
    sounding = [item for item in items if "spectrogram" in item.clip.inputs]
    mixed = [item for pair in zip(silent, sounding, strict=False) for item in pair]
    return collate_items([mixed[index] for index in chosen], mask_padding=False)


def assert_close(actual, eager, exact):
    assert actual.keys() == exact.keys()
    for name, tensor in exact.items():
        assert_close_to_exact(actual[name], eager[name], tensor, name=name)


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_add_up_to_the_batch(step, size):
    actual, record = step(f"train.micro_batch={size}")
    eager, expected = step()
    exact, precise = step(dtype=torch.float64)
    assert_close(actual, eager, exact)
    for name in ("loss", "loss/rgb", "loss/spectrogram", "grad_norm"):
        values = (torch.tensor(values[name]) for values in (record, expected))
        assert_close_to_exact(*values, torch.tensor(precise[name]).double(), name=name)


def test_each_virtual_device_clips_by_itself_before_the_mean(step):
    clip = "train.clip_norm=0.05"
    actual, record = step(clip, "train.virtual_devices=2")
    halves = [range(2), range(2, 4)]
    eager = [step(clip, clips=half) for half in halves]
    exact = [step(clip, clips=half, dtype=torch.float64) for half in halves]
    assert all(part["grad_norm"] > 0.05 for _, part in exact), "clipping acts"
    means = [
        {name: torch.stack([part[name] for part, _ in parts]).mean(0) for name in parts[0][0]}
        for parts in (eager, exact)
    ]
    assert_close(actual, *means)
    norms = [torch.tensor([part["grad_norm"] for _, part in parts]) for parts in (eager, exact)]
    expected, precise = norms[0].mean(), norms[1].double().mean()
    assert_close_to_exact(torch.tensor(record["grad_norm"]), expected, precise)


def test_each_virtual_device_mixes_by_itself(step, monkeypatch):
    calls = []
    call = Loop._backward

    def counted(self, step, number, group):
        calls.append((number, group.indices))
        call(self, step, number, group)

    monkeypatch.setattr(Loop, "_backward", counted)
    step("train.virtual_devices=2", "augment.mixup=0.5")
    assert [number for number, _ in calls] == [0, 1]
    assert [len(indices) for _, indices in calls] == [2, 2]


def test_float16_with_virtual_devices_is_refused(step):
    with pytest.raises(ValueError, match=r"train\.virtual_devices must be 0 with float16"):
        step("train.virtual_devices=2", "train.dtype=float16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_trains_float32_weights(step, dtype):
    gradients, record = step(f"train.dtype={dtype}")
    assert all(tensor.dtype == torch.float32 for tensor in gradients.values())
    assert record["loss"] > 0
