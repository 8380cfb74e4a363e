"""Engines that people run models with instead: ONNX Runtime, OpenVINO, AOTInductor.

Each runs the exported program in a process of its own, because its pool of threads spins and would
disturb a neighbour. A round is asked for over a pipe and timed in the process, between pauses in
which every pool falls asleep. An engine that is not installed, or fails, raises when it is called;
a record then says why it was not run.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mbt_fast

Inputs = Mapping[str, Tensor]
Engine = Callable[[Path, Inputs, int], Callable[[], Tensor]]
PAUSE = 0.05  # seconds, in which a pool stops spinning
PROGRAM, INPUTS, ONNX = "program.pt2", "inputs.pt", "model.onnx"


class Peer:
    """A program in a process of its own; a call runs it once and returns the logits.

    Attributes:
        seconds: That the last call took, by the clock of the process.
    """

    def __init__(self, engine: Engine, folder: Path, dtype: torch.dtype, threads: int) -> None:
        """Start the process; it loads the program at the first call."""
        self.seconds, self._dtype = 0.0, dtype
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, engine, folder, threads), daemon=True
        )
        self._process.start()
        theirs.close()

    def __call__(self) -> Tensor:
        """Run once.

        Raises:
            RuntimeError: The engine is not installed or fails; the message says how.
        """
        try:
            self._pipe.send("run")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(1)
            raise RuntimeError(f"its process ended with {self._process.exitcode}") from error
        if isinstance(answer, str):
            raise RuntimeError(answer)
        self.seconds, logits = answer
        return torch.tensor(logits, dtype=self._dtype)

    def close(self) -> None:
        """End the process, which waits for nothing else than this pipe."""
        self._pipe.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


def serve(pipe: Connection, engine: Engine, folder: Path, threads: int) -> None:
    """What the process does: a round for each message, until the pipe is closed."""
    torch.set_num_threads(threads)
    run: Callable[[], Tensor] | None = None
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        try:
            if run is None:
                run = engine(folder, torch.load(folder / INPUTS), threads)
                run()
            pipe.send(timed_round(run))
        except Exception as error:  # whatever it is, the record says so
            pipe.send(f"{type(error).__name__}: {error}")


def timed_round(run: Callable[[], Tensor]) -> tuple[float, Any]:
    """Seconds and logits, with a pause before for the pools of others and one after for its own."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    logits = run()
    seconds = time.perf_counter() - start
    time.sleep(PAUSE)
    return seconds, logits.tolist()


def onnx_runtime(folder: Path, inputs: Inputs, threads: int) -> Callable[[], Tensor]:
    """ONNX Runtime, told the batch, so that it knows all shapes."""
    import onnx
    import onnxruntime

    path = as_onnx(folder, inputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    batch = len(next(iter(inputs.values())))
    for entry in onnx.load(path, load_external_data=False).graph.input:
        name = entry.type.tensor_type.shape.dim[0].dim_param
        options.add_free_dimension_override_by_name(name, batch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {entry.name: inputs[_modality(entry.name)].numpy() for entry in session.get_inputs()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(folder: Path, inputs: Inputs, threads: int) -> Callable[[], Tensor]:
    """OpenVINO, told all shapes, and not to round to bfloat16, which it does where it can."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(as_onnx(folder, inputs))
    feed = {entry.any_name: inputs[_modality(entry.any_name)].numpy() for entry in model.inputs}
    model.reshape({name: list(x.shape) for name, x in feed.items()})
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: torch.from_numpy(request.infer(feed)[0].copy())


def aot_inductor(folder: Path, inputs: Inputs, threads: int) -> Callable[[], Tensor]:
    """AOTInductor; the number of threads is compiled in."""
    program, package = torch.export.load(folder / PROGRAM), str(folder / "compiled.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    compiled = torch._inductor.aoti_load_package(package)
    return lambda: compiled(dict(inputs))


ENGINES: dict[str, Engine] = {
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "AOTInductor": aot_inductor,
}


@contextmanager
def peers(
    model: nn.Module, inputs: Inputs, engines: Mapping[str, Engine]
) -> Iterator[dict[str, Peer]]:
    """The model on every engine, with as many threads as torch has here.

    Their processes end with the context.

    Args:
        model: In evaluation mode.
        inputs: As it takes them.
        engines: By name.
    """
    if not engines:
        yield {}
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        torch.save(dict(inputs), folder / INPUTS)
        torch.export.save(mbt_fast.export(model, inputs), folder / PROGRAM)
        dtype, threads = next(iter(inputs.values())).dtype, torch.get_num_threads()
        yield {
            name: stack.enter_context(closing(Peer(engine, folder, dtype, threads)))
            for name, engine in engines.items()
        }


def as_onnx(folder: Path, inputs: Inputs) -> Path:
    """The program as ONNX, converted by the first that asks.

    Raises:
        TypeError: The inputs are not float32; engines have no kernels for other types, or none that
            are quick.
    """
    dtype = next(iter(inputs.values())).dtype
    if dtype != torch.float32:
        raise TypeError(f"ONNX programs are measured in float32, got {dtype}")
    path = folder / ONNX
    if not path.exists():
        program = torch.export.load(folder / PROGRAM)
        torch.onnx.export(program, f=path, verbose=False)
    return path


def _modality(name: str) -> str:
    return name.removeprefix("inputs_")
