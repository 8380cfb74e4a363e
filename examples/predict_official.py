"""Load a checkpoint of the official code, and classify a clip.

python examples/predict_official.py CHECKPOINT CLIP

Without arguments it makes up both: a tiny random checkpoint in the official format, and a second of
noise. ``mbt-fast predict`` does the same, with labels and several views.
"""

import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import torch

import mbt_fast
from mbt_fast.checkpoint import (
    infer_config,
    load_scenic,
    save_scenic,
    scenic_to_torch,
    torch_to_scenic,
)
from mbt_fast.data import ClipTransform, load_clip

KNOWN: dict[str, Any] = {
    "input_size": {"rgb": (2, 32, 32), "spectrogram": (64, 32)},
    "num_heads": 4,
}


def make_up(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of ``mbt_tiny``, and a second of noise."""
    model = mbt_fast.create_model("mbt_tiny")
    torch.nn.init.normal_(model.head.weight, std=0.1)
    save_scenic(torch_to_scenic(model.state_dict(), model.config), folder / "checkpoint")
    with wave.open(str(folder / "clip.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(torch.randint(-9999, 9999, (16000,), dtype=torch.int16).numpy().tobytes())
    return folder / "checkpoint", folder / "clip.wav"


def predict(checkpoint: Path, clip: Path, **known: Any) -> torch.Tensor:
    """Probabilities ``[num_classes]``, the mean over views; one class per clip."""
    params = load_scenic(checkpoint)
    config, assumptions = infer_config(params, **known)
    print("\n".join(assumptions))  # what shapes do not tell; the official config file does
    model = mbt_fast.MBT(config).eval()
    model.load_state_dict(scenic_to_torch(params, config))
    views = load_clip(clip, ClipTransform.from_config(config)).inputs
    with torch.inference_mode():
        return model(views).softmax(-1).mean(0)


def main(arguments: list[str]) -> torch.Tensor:
    """Print the five most probable classes; return all probabilities."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if arguments:
            probabilities = predict(Path(arguments[0]), Path(arguments[1]))
        else:
            probabilities = predict(*make_up(Path(folder)), **KNOWN)
    for value, index in zip(*probabilities.topk(5), strict=True):
        print(f"class {int(index):4}  {float(value):.4f}")
    return probabilities


if __name__ == "__main__":
    main(sys.argv[1:])
