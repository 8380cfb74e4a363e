"""Other engines as baselines: their own process and clock, and what is said where one is absent."""

import importlib.util
import os
import time

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

from benchmarks import conftest, peers
from mbt_fast import MBT, create_model
from mbt_fast.testing import assert_close_to_exact

INPUTS = {"rgb": torch.linspace(-1, 1, 3 * 2 * 32 * 32).reshape(1, 3, 2, 32, 32)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_model("mbt_tiny", num_layers=2, fusion_layer=1).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


def slow(folder, inputs, threads):
    """Sleeps, and says in which process, with how many threads and inputs."""

    def run():
        time.sleep(0.2)
        return torch.tensor([os.getpid(), threads, torch.get_num_threads(), len(inputs)])

    return run


def absent(folder, inputs, threads):
    raise ModuleNotFoundError("No module named 'absent'")


def dying(folder, inputs, threads):
    os._exit(3)


@pytest.fixture(scope="module")
def started(model):
    with peers.peers(model, INPUTS, {"slow": slow, "absent": absent, "dying": dying}) as found:
        yield found


def test_a_round_is_timed_in_a_process_of_its_own(started):
    peer = started["slow"]
    pid, *threads, count = peer().int().tolist()
    assert threads == [torch.get_num_threads()] * 2
    assert count == 1
    assert pid != os.getpid()
    start = time.perf_counter()
    assert peer()[0] == pid
    passed = time.perf_counter() - start
    assert 0.2 <= peer.seconds <= passed - 2 * peers.PAUSE
    assert conftest.elapsed(peer, passed) == peer.seconds
    assert conftest.elapsed(lambda: None, passed) == passed


def test_an_engine_that_is_absent_or_dies_says_so_in_the_call(started):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ModuleNotFoundError: No module named 'absent'"):
            started["absent"]()
    with pytest.raises(RuntimeError, match="its process ended with 3"):
        started["dying"]()


def test_processes_end_with_the_context(model):
    with peers.peers(model, INPUTS, {"slow": slow}) as found:
        process = found["slow"]._process
        assert process.is_alive()
    assert not process.is_alive()


NEEDS = {"ONNX Runtime": ("onnxscript", "onnxruntime"), "OpenVINO": ("onnxscript", "openvino")}


@pytest.mark.slow
@pytest.mark.parametrize("name", peers.ENGINES)
def test_engines_compute_the_model(model, name):
    missing = [need for need in NEEDS.get(name, ()) if importlib.util.find_spec(need) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    with torch.no_grad():
        eager = model(INPUTS)
        exact = MBT(model.config).eval().double()
        exact.load_state_dict(model.state_dict())
        wide = exact({m: x.double() for m, x in INPUTS.items()})
    with peers.peers(model, INPUTS, {name: peers.ENGINES[name]}) as found:
        assert_close_to_exact(found[name](), eager, wide, name=name)


def test_onnx_is_measured_in_float32_only(tmp_path):
    with pytest.raises(TypeError, match=r"measured in float32, got torch\.bfloat16"):
        peers.as_onnx(tmp_path, {"rgb": INPUTS["rgb"].bfloat16()})
