"""The examples run, and do what they say."""

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples import choose_fusion_layer, fuse_pretrained, missing_modalities, predict_official

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "fusion_layer_and_slots.ipynb"
MOST_LINES = 80
NOT_INSTALLED = "the extra 'examples' is not installed"


def example(name, *packages):
    """The names that an example defines; skip where it needs what is not there."""
    for package in packages:
        pytest.importorskip(package, reason=NOT_INSTALLED)
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def run(name, *before, **environment):
    """In a process of its own, after other code; what it prints."""
    path = str(ROOT / "examples" / f"{name}.py")
    code = "\n".join([*before, "import runpy", f"runpy.run_path({path!r}, run_name='__main__')"])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path):
    text = path.read_text()
    assert len(text.splitlines()) < MOST_LINES
    assert f"python examples/{path.name}" in text.partition('"""\n\n')[0]


def test_fuse_pretrained_trains():
    before, after = fuse_pretrained.main()
    assert after < before


def test_choose_fusion_layer_keeps_the_budget(capsys):
    enough = choose_fusion_layer.main(["--model", "mbt_tiny", "--budget", "1"])
    assert enough == {"bottleneck": 0, "vanilla": 0}
    assert "fuse from layer 0 on" in capsys.readouterr().out
    too_little = choose_fusion_layer.main(["--model", "mbt_tiny", "--budget", "0"])
    assert too_little == {"bottleneck": None, "vanilla": None}
    assert "none fits" in capsys.readouterr().out


def test_fuse_timm_and_ast_trains():
    for package in ("transformers", "huggingface_hub"):
        pytest.importorskip(package, reason=NOT_INSTALLED)
    if not any((Path(folder) / "timm").is_dir() for folder in sys.path):
        pytest.skip(NOT_INSTALLED)
    stand_in = f"runpy.run_path({str(ROOT / 'tests/project/without_torchvision.py')!r})"
    printed = run("fuse_timm_and_ast", "import runpy", stand_in)
    before, after = (float(part.split()[-1]) for part in printed.split(","))
    assert after < before


def test_train_with_trainer_trains():
    losses = example("train_with_trainer", "transformers", "accelerate")["main"]()
    assert losses[-1] < losses[0]


def test_train_with_fabric_trains():
    main = example("train_with_fabric", "lightning_fabric")["main"]
    for precision in ("bf16-mixed", "32-true"):
        losses = main(precision)
        assert sum(losses[2:]) < sum(losses[:2])


def test_train_with_accelerate_trains():
    losses = example("train_with_accelerate", "accelerate")["main"]()
    assert sum(losses[4:]) < sum(losses[:4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "arguments"),
    [
        ("train_with_accelerate", "accelerate", ()),
        ("train_with_fabric", "lightning_fabric", ("32-true",)),
    ],
)
def test_two_processes_train_as_one(name, package, arguments, tmp_path):
    """Under torchrun; the same clips are in a step, so the losses are the same."""
    alone = example(name, package)["main"](*arguments)
    path = str(ROOT / "examples" / f"{name}.py")
    script = tmp_path / "script.py"
    script.write_text(f"import runpy\nrunpy.run_path({path!r})['main'](*{arguments!r})\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (printed,) = [line for line in done.stdout.splitlines() if line.startswith("losses ")]
    losses = json.loads(printed.removeprefix("losses "))
    assert losses == pytest.approx(alone, rel=1e-5)  # float32 over some steps
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_modality_parallel_trains_on_two_processes():
    """Each says what it holds, how the loss fell and what it sent."""
    path = str(ROOT / "examples" / "modality_parallel.py")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in sorted(done.stdout.splitlines()))
    assert lines.keys() == {"rgb", "spectrogram"}
    for line in lines.values():
        first, last = re.search(r"loss ([0-9.]+) -> ([0-9.]+)", line).groups()
        assert float(last) < float(first)
        assert "5 sums in a step: 4 of slots" in line


def test_lora_with_peft_trains_and_merges():
    result = example("lora_with_peft", "peft")["main"]()
    assert result["after"] < result["before"]
    assert result["difference"] < 1e-3 * result["before"]


def test_the_loss_of_a_batch_without_any_sound_was_nan():
    logits = {m: torch.randn(3, 4, requires_grad=True) for m in ("rgb", "spectrogram")}
    labels, some, none = torch.tensor([0, 1, 2]), torch.tensor([9, 9, 0]), torch.zeros(3)
    rgb = torch.nn.functional.cross_entropy(logits["rgb"][:2], labels[:2], reduction="sum")
    loss = missing_modalities.mean_loss(logits, {"rgb": some, "spectrogram": none}, labels)
    torch.testing.assert_close(loss, rgb / 3)
    loss.backward()
    assert not logits["spectrogram"].grad.any()


def test_missing_modalities_are_as_if_left_out():
    result = missing_modalities.main()
    assert result["difference"] < 1e-4 * result["loss"]


def test_predict_official_finds_a_class(capsys):
    pytest.importorskip("av")
    probabilities = predict_official.main([])
    assert probabilities.sum().item() == pytest.approx(1)
    assert capsys.readouterr().out.count("class") == 5


def test_check_triton_kernel_tells_right_from_wrong():
    pytest.importorskip("triton", reason="Triton is not installed")
    pytest.importorskip("numpy", reason="Triton's interpreter needs numpy")
    printed = run("check_triton_kernel", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert "right: within the error" in printed
    assert "without the maximum: softmax" in printed


def test_run_triton_without_gpu_finds_what_no_result_shows():
    pytest.importorskip("triton", reason="Triton is not installed")
    pytest.importorskip("numpy", reason="the executor needs numpy")
    printed = run("run_triton_without_gpu", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert printed.count("launches, within the error of eager PyTorch") == 2
    assert "without the mask: PTX line" in printed
    assert "run_triton_without_gpu.py:" in printed


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.pt2", "model.onnx", "model.compiled.pt2"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_exported_models_give_the_same_logits(file, request, tmp_path):
    if file == "model.onnx":
        pytest.importorskip("onnxscript", reason=NOT_INSTALLED)
        pytest.importorskip("onnxruntime", reason=NOT_INSTALLED)
    if file == "model.compiled.pt2":
        request.getfixturevalue("inductor")
    differences = example("export_model")["main"](str(tmp_path), (file,))
    assert differences[file] < 1e-3
    assert (tmp_path / file).exists()


def test_the_notebook_shows_that_slots_carry_what_the_task_needs():
    """Its code runs from top to bottom; what is counted is what the file shows."""
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    names, printed = {}, []
    for cell in cells:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
        printed.append(out.getvalue())
    assert printed[0] == "".join(cells[0]["outputs"][0]["text"])
    late, last, earlier = (names["accuracy"](names["models"][layer]) for layer in (4, 3, 2))
    assert max(late, last) < 0.85 < 0.95 < earlier
    first, second = names["found"]
    assert min(first["rgb"], first["spectrogram"], second["differ"]) > 0.9 > 0.7 > first["differ"]
