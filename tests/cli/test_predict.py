"""``mbt-fast predict`` from files to tables."""

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import pytest
import torch

import mbt_fast
from mbt_fast.cli.main import main
from mbt_fast.data import ClipTransform, load_clip

av = pytest.importorskip("av")
pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
pytest.importorskip("safetensors")

NASA = str(Path(__file__).parents[1] / "golden" / "nasa.mp4")
OFFICIAL = str(Path(__file__).parents[1] / "golden" / "bottleneck.checkpoint")
TINY = ["--model", "mbt_tiny", "--device", "cpu"]


@pytest.fixture
def model():
    """A tiny model whose classes differ, unlike those of a fresh one with its zero head."""
    model = mbt_fast.create_model("mbt_tiny").eval()
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture
def wav(tmp_path):
    """A second of silence."""
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(32000))
    return path


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def expected_logits(model, views, **options):
    clip = load_clip(NASA, ClipTransform.from_config(model.config, **options), n_views=views)
    with torch.inference_mode():
        return model(dict(clip.inputs)).mean(0)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("views", [1, 3])
def test_logits_are_averaged_before_the_activation(
    model, checkpoint, tmp_path, capsys, activation, views
):
    out = tmp_path / "out.json"
    options = ("--activation", activation, "--views", views, "--top", 10, "--device", "cpu")
    assert predict(NASA, "--checkpoint", checkpoint, "--json", out, *options) == 0
    logits = expected_logits(model, views)
    probabilities = logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)
    order = probabilities.argsort(descending=True)
    report = json.loads(out.read_text())
    assert report["weights"] == checkpoint
    assert report["activation"] == activation
    assert report["errors"] == []
    (clip,) = report["clips"]
    assert clip["path"] == NASA
    assert clip["seconds"] == 5
    assert clip["views"] == views
    assert clip["absent"] == []
    assert list(clip["streams"]) == ["rgb", "spectrogram"]
    assert [entry["index"] for entry in clip["classes"]] == order.tolist()
    assert [entry["label"] for entry in clip["classes"]] == [str(i) for i in order.tolist()]
    assert [entry["probability"] for entry in clip["classes"]] == probabilities[order].tolist()
    captured = capsys.readouterr()
    assert "random" not in captured.out
    assert captured.err == ""


def test_table(model, checkpoint, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"class {'abcdefghij'[i]}" for i in range(10)) + "\n")
    options = ("--labels", labels, "--top", 3, "--views", 2, "--device", "cpu")
    assert predict(NASA, "--checkpoint", checkpoint, *options) == 0
    note, *lines = capsys.readouterr().out.splitlines()
    assert note.startswith("note: the official feature extraction was never published; ")
    assert lines[0] == NASA
    assert lines[1].split() == ["5.00", "s,", "2", "views"]
    assert "rgb (h264" in lines[2]
    assert "spectrogram (aac" in lines[2]
    assert lines[3].split() == ["rank", "class", "probability"]
    values, indices = expected_logits(model, 2).sigmoid().topk(3)
    for rank in range(3):
        name = "abcdefghij"[indices[rank]]
        assert lines[5 + rank].split() == [str(rank + 1), "class", name, f"{values[rank]:.4f}"]
    assert len([line for line in lines if line]) == 8


def test_random_weights_are_called_so(capsys):
    assert predict(NASA, *TINY, "--top", 50) == 0
    out = capsys.readouterr().out
    assert out.startswith("mbt_tiny with random weights: the predictions mean nothing\n")
    assert len(out.split("----\n")[-1].strip().splitlines()) == 10  # no more than there are


def test_random_weights_are_the_same_every_time_and_tell_clips_apart(wav, tmp_path):
    reports = []
    for seed in range(2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        out = tmp_path / f"{seed}.json"
        assert predict(NASA, wav, *TINY, "--top", 10, "--json", out) == 0
        assert torch.equal(torch.get_rng_state(), before)  # the caller's numbers stay the caller's
        reports.append(json.loads(out.read_text()))
    assert reports[0] == reports[1]
    assert reports[0]["weights"] == "random"
    assert reports[0]["notes"] == ["mbt_tiny with random weights: the predictions mean nothing"]
    for clip in reports[0]["clips"]:
        assert len({entry["probability"] for entry in clip["classes"]}) == 10
    first, second = (clip["classes"] for clip in reports[0]["clips"])
    assert first != second


def test_a_head_of_zero_is_called_so(tmp_path, capsys):
    mbt_fast.create_model("mbt_tiny").save_pretrained(tmp_path / "fresh")
    out = tmp_path / "out.json"
    assert predict(NASA, "--checkpoint", tmp_path / "fresh", "--device", "cpu", "--json", out) == 0
    report = json.loads(out.read_text())
    assert {entry["probability"] for entry in report["clips"][0]["classes"]} == {0.5}
    note = "note: the classifier's weights are all zero, so every class gets the same probability"
    assert report["notes"][0].startswith(note)
    assert capsys.readouterr().out.startswith(note)


def test_a_model_without_sound_has_no_note_on_its_features(tmp_path, capsys):
    model = mbt_fast.create_model("mbt_tiny", modalities=("rgb",))
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(tmp_path / "rgb")
    assert predict(NASA, "--checkpoint", tmp_path / "rgb", "--device", "cpu") == 0
    assert capsys.readouterr().out.startswith(NASA)


def test_the_device_may_be_left_to_the_machine(wav):
    assert predict(wav, "--model", "mbt_tiny") == 0


def test_nan_is_no_probability(model, tmp_path, capsys):
    with torch.no_grad():
        model.head.weight[3] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    out = tmp_path / "out.json"
    options = ("--device", "cpu", "--top", 10, "--json", out, "--views", 1)
    assert predict(NASA, "--checkpoint", tmp_path / "nan", *options) == 0
    (clip,) = json.loads(out.read_text(), parse_constant=pytest.fail)["clips"]
    assert clip["undefined"] == 1
    assert clip["classes"][-1] == {"index": 3, "label": "3", "probability": None}
    values = [entry["probability"] for entry in clip["classes"][:-1]]
    assert values == sorted(values, reverse=True)
    table = capsys.readouterr().out.splitlines()
    assert "  classes without a probability, for it is NaN: 1" in table
    assert table[-2].split() == ["10", "3", "nan"]


def test_an_absent_modality_is_named(wav, capsys):
    assert predict(wav, *TINY) == 0
    out = capsys.readouterr().out
    assert "uses spectrogram (pcm_s16le, 16000 Hz, 1 channel)\n" in out
    assert "rgb is absent\n" in out


def test_a_bad_clip_does_not_stop_the_others(tmp_path, capsys):
    bad, out = tmp_path / "missing.mp4", tmp_path / "out.json"
    assert predict(bad, NASA, *TINY, "--json", out) == 2
    captured = capsys.readouterr()
    assert captured.err == f"mbt-fast: error: {bad}: no such file\n"
    assert NASA in captured.out
    report = json.loads(out.read_text())
    assert [clip["path"] for clip in report["clips"]] == [NASA]
    assert report["errors"] == [{"path": str(bad), "error": f"{bad}: no such file"}]


@pytest.fixture
def damaged(tmp_path):
    """A clip with one packet of its video overwritten."""
    with av.open(NASA) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][40]
        position, size = packet.pos, packet.size
    data = bytearray(Path(NASA).read_bytes())
    data[position : position + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    return path


def test_a_damaged_clip_is_used_and_called_so(damaged, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert predict(NASA, damaged, *TINY, "--json", out) == 0
    assert capsys.readouterr().out.count("  damaged: 1 packet skipped\n") == 1
    assert [clip["skipped"] for clip in json.loads(out.read_text())["clips"]] == [0, 1]


def test_a_clip_that_is_cut_off_is_used_and_called_so(tmp_path, capsys):
    data, path = Path(NASA).read_bytes(), tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * 0.6)])
    assert predict(path, *TINY) == 0
    assert "\n  damaged: cut off, the file ends at 2." in capsys.readouterr().out


def test_a_damaged_clip_is_refused_if_asked_for(damaged, capsys):
    assert predict(damaged, NASA, *TINY, "--errors", "strict") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mbt-fast: error: {damaged}: damaged, cannot be decoded past ")
    assert captured.err.count("\n") == 1
    assert NASA in captured.out


def test_any_fault_of_a_clip_leaves_the_batch_going(monkeypatch, wav, capsys):
    def fail(self):
        raise IndexError("list index out of range")

    with monkeypatch.context() as patch:
        patch.setattr("mbt_fast.data.video.VideoCollector.spans", fail)
        assert predict(NASA, wav, *TINY) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert str(wav) in captured.out


@pytest.mark.parametrize(
    "options", [{"stride": 60}, {"mean": 1.102, "std": 2.762}], ids=["stride", "statistics"]
)
def test_options_reach_the_transform(model, checkpoint, tmp_path, options):
    out = tmp_path / "out.json"
    names = {"stride": "--stride", "mean": "--spec-mean", "std": "--spec-std"}
    flags = [part for name, value in options.items() for part in (names[name], value)]
    common = ("--checkpoint", checkpoint, "--json", out, "--views", 1, "--device", "cpu")
    assert predict(NASA, *common, *flags) == 0
    value = expected_logits(model, 1, **options).sigmoid().max().item()
    assert value != expected_logits(model, 1).sigmoid().max().item()
    assert json.loads(out.read_text())["clips"][0]["classes"][0]["probability"] == value


def test_ctrl_c_leaves_what_is_finished(wav, tmp_path, monkeypatch, capsys):
    def interrupt_the_second(path, *args, **kwargs):
        if path == NASA:
            raise KeyboardInterrupt
        return load_clip(path, *args, **kwargs)

    monkeypatch.setattr("mbt_fast.cli.predict.load_clip", interrupt_the_second)
    out = tmp_path / "out.json"
    assert predict(wav, NASA, wav, *TINY, "--json", out) == 130
    assert [clip["path"] for clip in json.loads(out.read_text())["clips"]] == [str(wav)]
    assert capsys.readouterr().err.splitlines()[-1] == "mbt-fast: interrupted"


@pytest.mark.parametrize("name", ["", "absent/out.json"])
def test_json_that_cannot_be_written_is_told_before_any_clip(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr("mbt_fast.cli.predict.load_clip", None)
    assert predict(NASA, *TINY, "--json", tmp_path / name) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(tmp_path / name) in captured.err
    assert captured.err.count("\n") == 1


def test_options_that_are_refused_leave_the_json_file_as_it_was(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("old")
    for path in (old, new):
        assert predict(NASA, *TINY, "--stride", "0", "--json", path) == 2
    assert old.read_text() == "old"
    assert not new.exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes close otherwise elsewhere")
def test_a_reader_that_leaves_early_is_no_error():
    """One interpreter imports torch and forks for each command; a child exits like a command."""
    commands = [["info"], ["predict", NASA, *TINY], ["--help"]]
    code = """
import json, os, sys
from mbt_fast.cli.main import main
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        sys.exit(main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(commands)],  # 3.12 warns of forks
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )
    os.close(writing)
    assert done.stderr.split() == [b"141"] * len(commands)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "mbt_huge"], "--model must be one of mbt_tiny"),
        ([*TINY, "--stride", "0"], "stride must be positive, got 0.0"),
        ([*TINY, "--labels", "missing.txt"], "missing.txt: cannot read the labels"),
        ([*TINY, "--spec-std", "-1"], "std must be positive, got -1.0"),
        ([*TINY, "--spec-mean", "nan"], "mean must be finite, got nan"),
        (["--checkpoint", "missing"], "missing"),
        (["--checkpoint", OFFICIAL], f"got the file '{OFFICIAL}'; run mbt-fast convert first"),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert predict(NASA, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mbt-fast: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("options", [["--top", "0"], ["--views", "-1"], ["--activation", "relu"]])
def test_bad_numbers_are_usage_errors(options, capsys):
    with pytest.raises(SystemExit) as raised:
        predict(NASA, *TINY, *options)
    assert raised.value.code == 2
    assert options[0] in capsys.readouterr().err
