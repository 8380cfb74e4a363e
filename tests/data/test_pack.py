"""``data pack``: small clips in tar files, which read as the clips that they were made of."""

import io
import json
import tarfile
import wave
from pathlib import Path

import pytest
import torch

from mbt_fast.cli.main import main
from mbt_fast.data import ClipTransform, Entry, Manifest, load_clip, read_window
from mbt_fast.data.encode import ClipWriter
from mbt_fast.data.pack import Shards, write_shard
from mbt_fast.data.rows import write_rows
from mbt_fast.data.synthetic import SyntheticSet, write_synthetic
from mbt_fast.data.transcode import Recipe, transcode
from mbt_fast.errors import ClipError, InputError

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")
pytest.importorskip("tqdm")

NASA = str(Path(__file__).parents[1] / "golden" / "nasa.mp4")  # 5 s, 256x144, 25 fps, 16 kHz
TRANSFORM = ClipTransform((4, 64, 64), (100, 32))
FINE = Recipe(quality=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    made = SyntheticSet(clips=10, classes=2, seconds=0.5, val=0.0, broken=0.1, silent=0.2)
    list(write_synthetic(folder, made))
    return folder


def pack(*arguments):
    return main(["data", "pack", *map(str, arguments), "--workers", "0"])


def streams(content):
    """Width and height of the video, and the rate of the sound, by kind."""
    with av.open(io.BytesIO(content)) as container:
        found = {"video": [(s.width, s.height) for s in container.streams.video]}
        found["audio"] = [s.sample_rate for s in container.streams.audio]
        return {kind: values[0] for kind, values in found.items() if values}


def packets(content):
    with av.open(io.BytesIO(content)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


# One clip.


def test_a_written_clip_reads_as_its_source():
    source = load_clip(NASA, TRANSFORM, n_views=3)
    written = load_clip(transcode(Entry(NASA, "nasa"), FINE), TRANSFORM, n_views=3)
    assert written.starts == source.starts
    assert written.duration == source.duration
    assert written.formats["spectrogram"] == "flac, 16000 Hz, 1 channel"
    error = {m: (written.inputs[m] - source.inputs[m]).abs() for m in source.inputs}
    # Colours have half the resolution and 8 bits; sound is rounded to 16 bits once more.
    assert error["rgb"].mean() < 2 / 127.5
    assert error["spectrogram"].mean() * TRANSFORM.std < 0.01


def test_a_segment_becomes_a_clip_from_zero_on():
    source = read_window(NASA, TRANSFORM, 1.23, 3.3)
    content = transcode(Entry(NASA, "nasa", start=1.23, end=3.3), FINE)
    written = read_window(content, TRANSFORM)
    assert source.duration == written.duration == 2.07
    assert written.starts["rgb"][0] == pytest.approx(source.starts["rgb"][0] - 1.23)
    assert (written.inputs["rgb"] - source.inputs["rgb"]).abs().mean() < 2 / 127.5
    assert packets(content)[0].pts == 0


def test_sound_is_kept_bit_by_bit(tmp_path):
    # Not of an AAC file: its decoder makes up noise that depends on where decoding began.
    samples = torch.randint(-(2**15), 2**15, (32000,), dtype=torch.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.numpy().tobytes())
    content = transcode(Entry(str(tmp_path / "a.wav"), "a", start=0.5, end=1.75), Recipe())
    with av.open(io.BytesIO(content)) as container:
        written = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert torch.equal(torch.from_numpy(written), samples[8000:28000])


def test_key_frames_are_frequent():
    found = packets(transcode(Entry(NASA, "nasa"), Recipe(key_frames=16)))
    keys = [index for index, packet in enumerate(found) if packet.is_keyframe]
    assert max(b - a for a, b in zip(keys, [*keys[1:], len(found)], strict=True)) <= 16
    assert len(found) == 125


def test_decoding_gives_each_picture_at_once():
    # Pictures that are stored out of order would be decoded before they are shown.
    stamps = [packet.pts for packet in packets(transcode(Entry(NASA, "nasa"), Recipe()))]
    assert stamps == sorted(stamps)


def test_pictures_are_made_smaller_and_never_larger():
    for side, expected in ((72, (128, 72)), (256, (256, 144)), (73, (130, 72))):
        content = transcode(Entry(NASA, "nasa"), Recipe(short_side=side))
        assert streams(content)["video"] == expected


def test_at_most_so_many_pictures_per_second():
    times = [
        float(p.pts * p.time_base) for p in packets(transcode(Entry(NASA, "n"), Recipe(fps=5)))
    ]
    assert len(times) == 25
    assert times == pytest.approx([index / 5 for index in range(25)])
    assert len(packets(transcode(Entry(NASA, "n"), Recipe(fps=60)))) == 125


def test_turned_pictures_are_stored_upright(tmp_path):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10, width=64, height=32, pix_fmt="yuv420p")
        video.set_display_rotation(90)
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:, :32] = 255  # the left half
        for _ in range(5):
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(video.encode(None))
    transform = ClipTransform((1, 64, 32), None, min_side=32)
    source = read_window(path, transform).inputs["rgb"]
    content = transcode(Entry(str(path), "turned"), FINE)
    assert streams(content)["video"] == (32, 64)
    assert (read_window(content, transform).inputs["rgb"] - source).abs().mean() < 2 / 127.5
    assert source[..., :16, :].mean().sign() == -source[..., -16:, :].mean().sign()


def test_sound_without_pictures_and_pictures_without_sound(folder, tmp_path):
    content = transcode(Entry(NASA, "nasa"), Recipe(audio_codec="aac"))
    with av.open(io.BytesIO(content)) as given, av.open(str(tmp_path / "a.m4a"), "w") as out:
        stream = out.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(audio=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    written = transcode(Entry(str(tmp_path / "a.m4a"), "a"), Recipe())
    assert list(streams(written)) == ["audio"]
    silent = next(
        e for e in Manifest.read(folder / "train.csv") if e.id in _ids_without_sound(folder)
    )
    assert list(streams(transcode(silent, Recipe()))) == ["video"]


def _ids_without_sound(folder):
    ids = []
    for path in sorted((folder / "clips").glob("*.mp4")):
        try:
            if list(streams(path.read_bytes())) == ["video"]:
                ids.append(path.stem)
        except av.FFmpegError:
            continue
    return ids


def test_a_clip_that_does_not_exist_in_its_file():
    with pytest.raises(ClipError, match=r"start must lie before the end of the file, 5\.00 s"):
        transcode(Entry(NASA, "nasa", start=6.0, end=7.0), Recipe())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 8}, "short_side must be in 16"),
        ({"key_frames": 0}, "key_frames must be in 1"),
        ({"fps": float("nan")}, "fps must be in"),
        ({"quality": 52}, "quality must be in 0 .. 51, got 52"),
        ({"audio_codec": "mp3"}, "audio_codec must be flac or aac, got 'mp3'"),
    ],
)
def test_impossible_recipes(options, message):
    with pytest.raises(InputError, match=message):
        Recipe(**options)


# Shards.


def test_pack(folder, tmp_path, capsys):
    assert pack(folder / "train.csv", tmp_path, "--clips-per-shard", 4) == 2  # one is broken
    printed = capsys.readouterr().out
    assert "9 clips in 3 shards" in printed
    assert "left out, broken: 1" in printed
    source, packed = Manifest.read(folder / "train.csv"), Manifest.read(tmp_path / "train.csv")
    by_id = {entry.id: entry for entry in source}
    assert len(packed) == 9
    for entry in packed:
        assert entry.labels == by_id[entry.id].labels
        before, after = (read_window(e.media, TRANSFORM) for e in (by_id[entry.id], entry))
        assert before.inputs.keys() == after.inputs.keys()
        assert (before.inputs["rgb"] - after.inputs["rgb"]).abs().mean() < 0.1
    assert sum("spectrogram" not in read_window(e.media, TRANSFORM).inputs for e in packed) == 2


def test_shards_have_the_layout_of_webdataset(folder, tmp_path):
    pack(folder / "train.csv", tmp_path, "--clips-per-shard", 5)
    packed = Manifest.read(tmp_path / "train.csv")
    clips = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(m.name, m.offset_data, tar.extractfile(m).read()) for m in tar]
        assert len({name.count(".") for name, _, _ in members}) == 1  # a key has no dot
        for (name, offset, content), (other, _, text) in zip(
            members[::2], members[1::2], strict=True
        ):
            assert name.removesuffix(".mp4") == other.removesuffix(".json")
            clips.append((json.loads(text), path, offset, content))
    assert len(clips) == len(packed) == 9
    for entry, (description, path, offset, content) in zip(packed, clips, strict=True):
        assert description == {"id": entry.id, "labels": list(entry.labels)}
        assert (entry.path, entry.offset, entry.size) == (str(path), offset, len(content))
        assert entry.media.read() == content


def test_the_same_command_goes_on_where_it_was_stopped(folder, tmp_path, capsys):
    manifest = Manifest.read(folder / "train.csv")
    shards = Shards(manifest, tmp_path, Recipe(), 4)
    write_shard(shards[0])
    made = shards[0].path.stat().st_mtime_ns
    (tmp_path / "train-000001.tar").write_bytes(b"half of a shard, without its index")
    pack(folder / "train.csv", tmp_path, "--clips-per-shard", 4)
    assert "1 of 3 shards are there already" in capsys.readouterr().out
    assert shards[0].path.stat().st_mtime_ns == made
    assert len(Manifest.read(tmp_path / "train.csv")) == 9
    assert not list(tmp_path.glob("*.partial"))


def test_shards_of_something_else_are_not_mixed(folder, tmp_path, capsys):
    pack(folder / "train.csv", tmp_path)
    assert pack(folder / "train.csv", tmp_path, "--short-side", 32) == 2
    error = capsys.readouterr().err
    assert "train-000000.json: was made of other clips or in another way" in error
    (tmp_path / "train-000000.json").write_text("{}")
    assert pack(folder / "train.csv", tmp_path) == 2
    assert "not the index of a shard" in capsys.readouterr().err


def test_another_part_of_the_same_clips_is_something_else(tmp_path, capsys):
    source = tmp_path / "a.csv"
    for end in (0.5, 0.6):
        source.write_text(f"path,id,end\n{NASA},a,{end}\n")
        code = pack(source, tmp_path / "out")
    assert code == 2
    assert "was made of other clips" in capsys.readouterr().err


def test_a_clip_that_cannot_be_encoded_is_left_out(tmp_path, capsys, monkeypatch):
    def fail(self, frame, time, duration):
        raise av.error.InvalidDataError(1, "too odd")

    monkeypatch.setattr(ClipWriter, "add_picture", fail)
    source = tmp_path / "a.csv"
    source.write_text(f"path,id\n{NASA},a\n")
    assert pack(source, tmp_path / "out") == 2
    assert "cannot be encoded (too odd)" in capsys.readouterr().out


def test_a_failing_write_leaves_no_shard(folder, tmp_path, monkeypatch):
    def full(self, member, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    assert pack(folder / "train.csv", tmp_path) == 2
    assert not list(tmp_path.glob("*.tar"))
    assert not (tmp_path / "train.csv").exists()


def test_ids_of_any_kind(folder, tmp_path):
    clip = Manifest.read(folder / "train.csv")[0].path
    rows = [{"path": clip, "id": name} for name in ("a.b/c d.mp4:1-2", "a_b_c", "ä/|", "x" * 300)]
    write_rows(tmp_path / "odd.jsonl", rows, ("path", "id"))
    (tmp_path / "out").mkdir()
    pack(tmp_path / "odd.jsonl", tmp_path / "out")
    packed = Manifest.read(tmp_path / "out" / "odd.jsonl")
    assert [entry.id for entry in packed] == [row["id"] for row in rows]
    assert all(read_window(entry.media, TRANSFORM).inputs for entry in packed)


def test_verbs_and_nouns_are_kept(folder, tmp_path):
    path = Manifest.read(folder / "train.csv")[0].path
    source = tmp_path / "epic.csv"
    source.write_text(
        f"path,id,start,end,verb,noun\n{path},a,0,0.2,take,pan\n{path},b,0.1,0.4,put,lid\n"
    )
    assert pack(source, tmp_path / "out") == 0
    first, second = Manifest.read(tmp_path / "out" / "epic.csv")
    assert (first.verb, first.noun, first.start) == ("take", "pan", None)
    assert (second.verb, second.noun) == ("put", "lid")
    assert read_window(second.media, TRANSFORM).duration == pytest.approx(0.3)


def test_labels_of_heads_are_kept(folder, tmp_path):
    path = Manifest.read(folder / "train.csv")[0].path
    source = tmp_path / "heads.csv"
    source.write_text(f"path,id,labels.sum,labels.shown\n{path},a,,2\n{path},b,3,1|4\n")
    assert pack(source, tmp_path / "out") == 0
    first, second = Manifest.read(tmp_path / "out" / "heads.csv")
    assert first.heads == {"shown": ("2",)}
    assert second.heads == {"sum": ("3",), "shown": ("1", "4")}


def test_the_manifest_is_not_overwritten(folder, capsys):
    assert pack(folder / "train.csv", folder) == 2
    assert "OUT must be another folder than that of the manifest" in capsys.readouterr().err
    assert Manifest.read(folder / "train.csv")[0].offset is None
