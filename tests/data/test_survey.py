"""``data check`` and ``data stats`` on made clips: what is counted, and what is found broken."""

import json
import math
from fractions import Fraction
from functools import partial

import pytest
import torch

from mbt_fast.cli.main import main
from mbt_fast.data import ClipTransform, Entry, Manifest, load_clip
from mbt_fast.data.encode import ClipWriter
from mbt_fast.data.examine import examine
from mbt_fast.data.media import Media
from mbt_fast.data.statistics import Moments, log_mel_moments
from mbt_fast.data.synthetic import SyntheticSet, write_synthetic

av = pytest.importorskip("av")
pytest.importorskip("numpy")
pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
from media_files import NASA  # noqa: E402

WINDOWS = {"time": 50, "mel": 32, "window": "hamming", "views": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """16 training clips of 1 s: two broken, four silent; 4 classes."""
    folder = tmp_path_factory.mktemp("survey")
    made = SyntheticSet(16, classes=4, seconds=1.0, val=0.0, broken=0.125, silent=0.25)
    list(write_synthetic(folder, made))
    return folder


def check(capsys, *arguments):
    code = main(["data", "check", *map(str, arguments)])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_check_counts_and_lists(folder, tmp_path, capsys, workers):
    out = tmp_path / "check.json"
    manifest = Manifest.read(folder / "train.csv")
    code, printed = check(capsys, folder / "train.csv", "--json", out, "--workers", workers)
    record = json.loads(out.read_text())
    assert code == 2
    assert (record["clips"], len(record["broken"])) == (16, 2)
    assert record["seconds"] == pytest.approx(14, abs=0.2)
    assert {name: len(ids) for name, ids in record["without"].items()} == {"video": 0, "audio": 4}
    assert sum(counts["clips"] for counts in record["classes"].values()) == 14
    assert sum(counts["broken"] for counts in record["classes"].values()) == 2
    assert record["hash"] == manifest.hash
    assert record["still"] == record["muted"] == []
    assert record["formats"]["audio"] == {"aac, 16000 Hz, 1 channel": 10}
    ids = {entry.id for entry in manifest}
    assert set(record["broken"]) < ids
    assert not set(record["without"]["audio"]) & set(record["broken"])
    assert "16 clips" in printed
    assert "broken: 2" in printed
    assert all(reason in printed for reason in record["broken"].values())
    assert "with audio: 10, without: 4" in printed


def test_check_of_whole_clips_is_0(folder, tmp_path, capsys):
    good = [e for e in Manifest.read(folder / "train.csv") if examine(e).error is None]
    path = tmp_path / "good.csv"
    path.write_text("path\n" + "".join(f"{entry.path}\n" for entry in good))
    code, printed = check(capsys, path, "--workers", 0)
    assert code == 0
    assert "broken: 0" in printed
    assert "class" not in printed


def test_check_names_classes_without_a_clip(folder, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("tone-0\ntone-1\ntone-2\ntone-3\ntone-4\n")
    _, printed = check(capsys, folder / "train.csv", "--labels", labels, "--workers", 0)
    assert "classes without a clip: tone-4" in printed


def test_check_refuses_labels_that_are_no_class(folder, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("tone-0\n")
    assert main(["data", "check", str(folder / "train.csv"), "--labels", str(labels)]) == 2
    assert "labels must name a class, got 'tone-1'" in capsys.readouterr().err


def test_check_takes_the_classes_of_the_task(folder, tmp_path, capsys):
    """A manifest may have columns of labels for several tasks."""
    clip = Manifest.read(folder / "train.csv")[0].path
    manifest, labels = tmp_path / "both.csv", tmp_path / "labels.txt"
    manifest.write_text(f"path,labels,labels.sum\n{clip},tone,odd\n")
    labels.write_text("sum:odd\nsum:even\n")
    options = ("--labels", labels, "--workers", 0)
    assert main(["data", "check", *map(str, (manifest, *options))]) == 2
    assert "labels must name a class, got 'tone'" in capsys.readouterr().err
    _, printed = check(capsys, manifest, *options, "--task", "multitask")
    assert "classes without a clip: sum:even" in printed


def test_damage_in_the_middle_is_found(folder, tmp_path, capsys):
    """A window elsewhere would not see it; a check decodes everything."""
    entry = next(e for e in Manifest.read(folder / "train.csv") if examine(e).error is None)
    content = bytearray((folder / "clips" / f"{entry.id}.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(content)
    (tmp_path / "a.csv").write_text("path\na.mp4\n")
    (examined,) = map(examine, Manifest.read(tmp_path / "a.csv"))
    assert "damaged" in examined.error


def test_a_segment_is_examined_alone(folder, tmp_path):
    entry = next(e for e in Manifest.read(folder / "train.csv") if examine(e).error is None)
    path = tmp_path / "a.csv"
    path.write_text(
        "path,start,end\n"
        + "".join(f"{entry.path},{start},{end}\n" for start, end in ((0.2, 0.6), (0.5, 9), (5, 6)))
    )
    first, second, third = map(examine, Manifest.read(path))
    assert first.seconds == pytest.approx(0.4)
    assert second.seconds == pytest.approx(0.5, abs=0.01)
    assert "start must lie before the end of the file, 1.00 s" in third.error


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("volume", [0.0, 0.01])
def test_still_pictures_and_silence_are_no_pictures_and_no_sound(tmp_path, moves, volume):
    path = tmp_path / "a.mp4"
    noise = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8)
    with ClipWriter(str(path), quality=30) as writer:
        writer.begin((64, 48), True)
        for k in range(15):
            picture = noise.roll(8 * k * moves, 1).contiguous().numpy()
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            writer.add_picture(frame, Fraction(k, 10), Fraction(1, 10))
        writer.add_sound(volume * torch.randn(24000))
    examined = examine(Entry(str(path), "a"))
    assert examined.error is None
    assert (examined.still, examined.muted) == (not moves, volume == 0)


# Statistics.


def test_moments_of_parts_are_those_of_the_whole():
    values = 1000 + torch.randn(1000, dtype=torch.float64)
    parts = sum((Moments.of(part) for part in values.split([1, 500, 499])), Moments())
    whole = Moments.of(values)
    assert parts.count == whole.count == 1000
    assert math.isclose(parts.mean, values.mean().item(), rel_tol=1e-14)
    assert math.isclose(parts.std, values.std(correction=0).item(), rel_tol=1e-12)


def test_stats_are_those_of_the_spectrograms(folder, tmp_path, capsys):
    out = tmp_path / "stats.json"
    arguments = ["--time", "60", "--mel", "32", "--window", "hann", "--workers", "0"]
    path = folder / "train.csv"
    assert main(["data", "stats", str(path), *arguments, "--json", str(out)]) == 0
    transform = ClipTransform(None, (60, 32), window="hann", mean=0, std=1)
    sound = [
        load_clip(entry.path, transform, n_views=1).inputs["spectrogram"]
        for entry in Manifest.read(path)
        if "audio" in examine(entry).formats
    ]
    values = torch.cat(sound).double()
    record = json.loads(out.read_text())
    assert (record["clips"], record["without_sound"], len(record["broken"])) == (10, 4, 2)
    assert math.isclose(record["mean"], values.mean().item(), rel_tol=1e-6)
    assert math.isclose(record["std"], values.std(correction=0).item(), rel_tol=1e-6)
    printed = capsys.readouterr().out
    assert f"mean = {record['mean']:.4f}" in printed
    assert 'window = "hann"' in printed


def test_no_silence_is_counted_behind_short_clips(folder, tmp_path):
    stats = []
    for time in ("90", "400"):  # the clips last 100
        out = tmp_path / "stats.json"
        arguments = ["--time", time, "--mel", "32", "--workers", "0", "--json", str(out)]
        assert main(["data", "stats", str(folder / "train.csv"), *arguments]) == 0
        stats.append(json.loads(out.read_text())["mean"])
    assert abs(stats[0] - stats[1]) < 0.1  # silence would add (4 - 1) / 4 of -15.9


def test_stats_of_some_clips(folder, capsys):
    arguments = ["--limit", "4", "--time", "60", "--workers", "0"]
    assert main(["data", "stats", str(folder / "train.csv"), *arguments]) == 0
    printed = capsys.readouterr().out
    clips = int(printed.split(" clips")[0].split()[-1])
    left_out = [int(word) for word in printed.splitlines()[1].split() if word.isdecimal()]
    assert clips + sum(left_out) == 4


def test_stats_need_sound(folder, tmp_path, capsys):
    silent = next(
        e for e in Manifest.read(folder / "train.csv") if list(examine(e).formats) == ["video"]
    )
    (tmp_path / "a.csv").write_text(f"path\n{silent.path}\n")
    assert main(["data", "stats", str(tmp_path / "a.csv"), "--workers", "0"]) == 2
    assert "must have a clip with sound that can be read" in capsys.readouterr().err
    assert main(["data", "stats", str(tmp_path / "a.csv"), "--mel", "0"]) == 2
    assert "--mel must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("clip", [(0.0, None), (0.0, 0.5), (9.0, 9.5)])
@pytest.mark.parametrize("count", [examine, partial(log_mel_moments, **WINDOWS)])
def test_nothing_stays_open_of_a_clip_that_was_counted(monkeypatch, count, clip):
    opened = []

    def remember(self, _open=Media.open):
        opened.append(_open(self))
        return opened[-1]

    monkeypatch.setattr(Media, "open", remember)
    count(Entry(str(NASA), "a", *clip))
    assert opened
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            list(container.demux())
