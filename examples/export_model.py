"""Export an MBT: a .pt2 file, ONNX, and a library compiled by AOTInductor.

python examples/export_model.py [FOLDER]

None of the three needs mbt_fast where it runs. ONNX needs onnxscript, and onnxruntime to run;
AOTInductor a C++ compiler.
"""

import sys
import tempfile
from pathlib import Path

import torch

import mbt_fast

Clip = dict[str, torch.Tensor]


def run_pt2(program: torch.export.ExportedProgram, path: Path, clip: Clip) -> torch.Tensor:
    """Save, load and call the program."""
    torch.export.save(program, path)
    return torch.export.load(path).module()(clip)


def run_onnx(program: torch.export.ExportedProgram, path: Path, clip: Clip) -> torch.Tensor:
    """Convert, save, load and call."""
    import onnxruntime

    torch.onnx.export(program, f=path, verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [entry.name for entry in session.get_inputs()]  # inputs_rgb, inputs_spectrogram
    feed = {name: clip[name.removeprefix("inputs_")].numpy() for name in names}
    return torch.from_numpy(session.run(None, feed)[0])


def run_compiled(program: torch.export.ExportedProgram, path: Path, clip: Clip) -> torch.Tensor:
    """Compile, load and call; C++ loads it too, with libtorch alone."""
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))(clip)


WAYS = {"model.pt2": run_pt2, "model.onnx": run_onnx, "model.compiled.pt2": run_compiled}


def main(folder: str | None = None, files: tuple[str, ...] = tuple(WAYS)) -> dict[str, float]:
    """Export in each way; return how far the logits are from the model's."""
    torch.manual_seed(0)
    model = mbt_fast.create_model("mbt_tiny", num_layers=2, fusion_layer=1).eval()
    torch.nn.init.normal_(model.head.weight)
    example = {"rgb": torch.randn(1, 3, 2, 32, 32), "spectrogram": torch.randn(1, 64, 32)}
    program = mbt_fast.export(model, example)  # of PyTorch's own operators, for any batch

    clip = {name: torch.randn(3, *x.shape[1:]) for name, x in example.items()}
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        where, expected = Path(folder or temporary), model(clip)
        return {
            file: float((WAYS[file](program, where / file, clip) - expected).abs().max())
            for file in files
        }


if __name__ == "__main__":
    print(main(sys.argv[1] if sys.argv[1:] else None))
