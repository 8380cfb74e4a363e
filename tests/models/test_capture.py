"""Captured inference: what the host decides, on the CPU with a recorder that stands in for CUDA."""

from contextlib import contextmanager
from copy import deepcopy

import hopper
import pytest
import torch
from model_cases import fusions, int32, lengths, random_inputs, tiny

from mbt_fast.models import capture
from mbt_fast.models.capture import run_modalities, side_streams
from mbt_fast.testing import assert_close_to_exact


@pytest.fixture
def stand_in(monkeypatch):
    """What was recorded and replayed, and which devices were made current.

    A replay runs again on the recorded tensors, into the recorded result.
    """
    events = []

    def record(run, pool):
        result = run()
        events.append("record")

        def replay():
            events.append("replay")
            result.copy_(run())

        return replay, result

    @contextmanager
    def current(device):
        events.append(device)
        yield

    monkeypatch.setattr(capture, "has_graphs", lambda device: True)
    monkeypatch.setattr(capture, "record", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(capture, "side_streams", contextmanager(lambda: iter([None])))
    return events


def test_the_models_device_is_made_current(stand_in):
    """Streams and graphs of another GPU than the weights' would record nothing of theirs."""
    model, inputs = tiny(), random_inputs()
    model.capture(inputs)(inputs)
    assert stand_in.count(model.norm.weight.device) == 2


@fusions
@lengths
def test_without_a_gpu_the_model_itself_is_called(fusion, lengths):
    model, inputs = tiny(**fusion), random_inputs()
    captured = model.capture(inputs, lengths)
    assert torch.equal(captured(inputs, lengths), model(inputs, lengths))
    assert "the model itself" in repr(captured)


def test_nothing_requires_gradients():
    model, inputs = tiny(), random_inputs()
    assert not model.capture(inputs)(inputs).requires_grad


def test_training_mode_is_refused():
    model, inputs = tiny(), random_inputs()
    captured = model.capture(inputs)
    model.train()
    with pytest.raises(RuntimeError, match="must be in evaluation mode"):
        captured(inputs)
    with pytest.raises(RuntimeError, match="must be in evaluation mode"):
        model.capture(inputs)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, x: c(None), TypeError, "inputs must be a mapping"),
        (lambda c, x: c({"rgb": x["rgb"][:, :2]}), ValueError, r"inputs\['rgb'\] must have shape"),
        (lambda c, x: c(x, [1]), TypeError, "lengths must be a mapping"),
        (lambda c, x: c(x, {"rgb": torch.ones(3)}), TypeError, "must be an int32 tensor"),
    ],
    ids=["no mapping", "shape", "lengths no mapping", "lengths dtype"],
)
@pytest.mark.parametrize("graphs", [False, True])
def test_bad_input_is_refused_as_by_the_model(call, error, message, graphs, request):
    if graphs:
        request.getfixturevalue("stand_in")
    captured = tiny().capture(random_inputs())
    with pytest.raises(error, match=message):
        call(captured, random_inputs())


def test_one_graph_per_shape_padding_and_autocast_dtype(stand_in):
    model, inputs = tiny().float(), random_inputs(dtype=torch.float32)
    padding = {"rgb": int32(9, 0, 4)}
    captured = model.capture(inputs)
    for call in (
        lambda: captured(inputs),
        lambda: captured(random_inputs(dtype=torch.float32)),
        lambda: captured(inputs, {"rgb": None}),
    ):
        call()
    assert stand_in.count("record") == 1
    captured(random_inputs(batch=1, dtype=torch.float32))
    captured(inputs, padding)
    captured({"rgb": inputs["rgb"]})
    with torch.autocast("cpu", torch.bfloat16):
        captured(inputs)
    assert stand_in.count("record") == 5
    assert "5 CUDA graphs" in repr(captured)


def test_a_replay_sees_new_data_lengths_and_weights(stand_in):
    model = tiny()
    captured = model.capture(random_inputs(), {"rgb": int32(3, 3, 3)})
    inputs, padding = random_inputs(), {"rgb": int32(9, 0, 4)}
    torch.nn.init.normal_(model.head.weight)
    assert torch.equal(captured(inputs, padding), model(inputs, padding))
    assert stand_in.count("record") == 1


def test_an_earlier_result_is_not_overwritten(stand_in):
    model, inputs = tiny(), random_inputs()
    captured = model.capture(inputs)
    first = captured(inputs)
    kept = first.clone()
    captured(random_inputs())
    assert torch.equal(first, kept)


def test_the_callers_tensors_are_not_written(stand_in):
    model, inputs = tiny(), random_inputs()
    kept = {m: x.clone() for m, x in inputs.items()}
    model.capture(inputs)(random_inputs())
    assert all(torch.equal(inputs[m], x) for m, x in kept.items())


def test_moved_weights_are_refused(stand_in):
    """A graph would go on reading where they were."""
    model, inputs = tiny(), random_inputs()
    captured = model.capture(inputs)
    model.load_state_dict({n: w.clone() for n, w in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match="weights must be where they were at capture"):
        captured(inputs)


class Recorded:
    """CUDA streams that write down what was asked of them."""

    def __init__(self, monkeypatch):
        self.events, self.names = [], iter("ab")
        self.now = self.Stream(self, "current")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self.Stream(self, next(self.names)))
        monkeypatch.setattr(torch.cuda, "stream", self.enter)

    class Stream:
        def __init__(self, owner, name):
            self.owner, self.name = owner, name

        def wait_stream(self, other):
            self.owner.events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def enter(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    def run(self, modalities):
        self.events.append(f"{' '.join(modalities)} on {self.now.name}")
        return {modality: modality for modality in modalities}


def test_towers_fork_from_the_current_stream_and_join_it(monkeypatch):
    streams = Recorded(monkeypatch)
    with side_streams():
        results = run_modalities(streams.run, ["rgb", "flow", "sound"])
    assert list(results) == ["rgb", "flow", "sound"]
    assert streams.events == [
        "a waits for current",
        "flow on a",
        "b waits for current",
        "sound on b",
        "rgb on current",
        "current waits for a",
        "current waits for b",
    ]


def test_towers_stay_together_outside_a_capture(monkeypatch):
    streams = Recorded(monkeypatch)
    run_modalities(streams.run, ["rgb", "sound"])
    with side_streams():
        run_modalities(streams.run, ["rgb"])
    run_modalities(streams.run, ["rgb", "sound"])
    assert streams.events == ["rgb sound on current", "rgb on current", "rgb sound on current"]


@fusions
@lengths
def test_side_streams_change_no_result(fusion, lengths, monkeypatch):
    Recorded(monkeypatch)
    model, inputs = tiny(**fusion), random_inputs()
    with side_streams():
        apart = model(inputs, lengths)
    together = model(inputs, lengths)
    assert_close_to_exact(apart, together, together)


@pytest.mark.gpu
@fusions
@lengths
def test_a_graph_gives_the_models_numbers(fusion, lengths):
    model = tiny(**fusion).cuda().half()
    inputs = {m: x.cuda().half() for m, x in random_inputs().items()}
    lengths = lengths and {m: length.cuda() for m, length in lengths.items()}
    captured = model.capture(inputs, lengths)
    fresh = {m: torch.randn_like(x) for m, x in inputs.items()}
    with torch.no_grad():
        exact = deepcopy(model).double()({m: x.double() for m, x in fresh.items()}, lengths)
        assert_close_to_exact(captured(fresh, lengths), model(fresh, lengths), exact)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "backend", ["auto", "triton", "sdpa", pytest.param("cuda", marks=hopper.skip_without)]
)
def test_a_graph_sees_trained_weights_and_refuses_moved_ones(backend):
    model = tiny(num_heads=1).cuda().half().set_backend(backend)  # of 64 channels, for cuda
    inputs = {m: x.cuda().half() for m, x in random_inputs().items()}
    captured = model.capture(inputs)
    before = captured(inputs)
    with torch.no_grad():
        model.head.weight.mul_(2)
        model.head.bias.zero_()
    after = captured(inputs)
    assert not torch.equal(before, after)
    assert torch.equal(after, captured(inputs))
    model.to(torch.float32).half()
    with pytest.raises(RuntimeError, match="weights must be where they were at capture"):
        captured(inputs)
