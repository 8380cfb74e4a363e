"""Manifests of public data sets: the quirks of their files, and the names of their clips."""

from pathlib import Path

import pytest

from mbt_fast.cli.main import main
from mbt_fast.data import Manifest, read_labels
from mbt_fast.data.importers import LabelledSegment, cap_classes, find_clips
from mbt_fast.data.importers.segment import seconds
from mbt_fast.errors import InputError

pytest.importorskip("tabulate")

SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=4, num_segs=4, num_unique_labels=3, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
-0DLPzsiXXE, 30.000, 40.000, "/m/04rlf"
0_9abcdefgh, 7.500, 17.500, "/m/04rlf,/m/068hy"
zzzzzzzzzzz, 120.000, 130.000, "/m/07q6cd_"
"""
CLASSES = """index,mid,display_name
0,/m/068hy,"Domestic animals, pets"
2,/m/04rlf,Music
1,/m/07q6cd_,Squeak
"""
VERBS = "id,key,instances,category\n" + "".join(f"{k},verb{k},\"['v']\",c\n" for k in range(97))
NOUNS = "id,key,instances,category\n" + "".join(f"{k},noun{k},\"['n']\",c\n" for k in range(300))
EPIC = """\
narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,\
stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes
P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,8,['door'],[8]
P01_01_10,P01,P01_01,01:02:03.5,01:02:03.05,01:02:04.05,1,2,put lid,put-on,1,lid,6,\
"['lid', 'box']","[6, 23]"
P99_01_0,P99,P99_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,8,['door'],[8]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def imported(*arguments, out="train.csv", clips="clips"):
    assert main(["data", *map(str, arguments), "--clips", clips, "--out", str(out)]) == 0
    return Manifest.read(out)


def refused(capsys, *arguments):
    assert main(["data", *map(str, arguments), "--clips", "clips", "--out", "x.csv"]) == 2
    return capsys.readouterr().err


@pytest.fixture
def audioset(folder):
    Path("balanced_train_segments.csv").write_text(SEGMENTS)
    Path("class_labels_indices.csv").write_text(CLASSES)
    touch("clips/a/--4gqARaEJE.mp4", "clips/-0DLPzsiXXE_30.mkv", "clips/Y0_9abcdefgh.wav")
    touch("clips/notes.txt")
    return Path("balanced_train_segments.csv")


def test_audioset(audioset, capsys):
    manifest = imported("audioset", audioset)
    assert [entry.id for entry in manifest] == [
        "--4gqARaEJE_0",
        "-0DLPzsiXXE_30000",
        "0_9abcdefgh_7500",
    ]
    assert manifest[0].labels == ("Domestic animals, pets", "Squeak")
    assert manifest[2].labels == ("Music", "Domestic animals, pets")
    assert manifest[0].path == str(Path("clips/a/--4gqARaEJE.mp4").absolute())
    assert manifest[0].start is manifest[0].end is None  # a cut clip
    assert read_labels("labels.txt") == ["Domestic animals, pets", "Squeak", "Music"]
    assert Path("train.missing.txt").read_text() == "zzzzzzzzzzz_120000\n"
    printed = capsys.readouterr().out
    assert "clips found: 3 of 4 (75.0%)" in printed
    assert "classes: 3, 0 without a clip" in printed
    assert manifest.hash in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("Squeak"))
    assert row.split() == ["Squeak", "1", "1"]


def test_the_manifest_may_be_moved_with_its_clips(audioset, tmp_path):
    imported("audioset", audioset)
    assert "clips/a/--4gqARaEJE.mp4," in Path("train.csv").read_text()
    imported("audioset", audioset, out=tmp_path / "new.jsonl")
    (tmp_path / "elsewhere").mkdir()
    moved = imported("audioset", audioset, out="elsewhere/train.csv")
    assert moved[0].path == str(tmp_path / "clips/a/--4gqARaEJE.mp4")


def test_whole_videos_need_the_times(audioset):
    touch("clips/0_9abcdefgh.webm")
    manifest = imported("audioset", audioset, "--whole-videos")
    assert [(entry.start, entry.end) for entry in manifest] == [(0, 10), (7.5, 17.5)]


def test_another_list_of_classes_is_not_overwritten(audioset, capsys):
    Path("labels.txt").write_text("other\n")
    error = refused(capsys, "audioset", audioset)
    assert "labels.txt: holds other classes" in error
    assert Path("labels.txt").read_text() == "other\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"/m/04rlf"', '"/m/none"', "line 5: '/m/none' is no class of"),
        ("30.000,", "soon,", "line 5: a time must be seconds or h:m:s, got 'soon'"),
        ('"/m/04rlf"', "/m/04rlf,/m/068hy", "line 5 must have 4 cells, got 5"),
    ],
)
def test_bad_audioset(audioset, capsys, old, new, message):
    audioset.write_text(SEGMENTS.replace(old, new, 1))
    assert message in refused(capsys, "audioset", audioset)


def test_audioset_without_its_classes(audioset, capsys):
    Path("class_labels_indices.csv").unlink()
    assert "the classes of AudioSet must be given" in refused(capsys, "audioset", audioset)


def test_vggsound(folder, capsys):
    Path("vggsound.csv").write_text(
        '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"bird chirping, tweeting",train\n'
        "---xyz_I2yQ,5,people marching,train\n"
    )
    touch("clips/--0PQM4-hqg_000030.mp4", "clips/---g-f_I2yQ_000001.mp4")
    train = imported("vggsound", "vggsound.csv", "--split", "train")
    assert [(entry.id, entry.labels) for entry in train] == [
        ("--0PQM4-hqg_000030", ("bird chirping, tweeting",))
    ]
    test = imported("vggsound", "vggsound.csv", "--split", "test", out="test.csv")
    assert test[0].id == "---g-f_I2yQ_000001"
    assert read_labels("labels.txt") == ["bird chirping, tweeting", "people marching"]
    assert train.targets(read_labels("labels.txt"), "single").tolist() == [0]
    assert "1 without a clip\n  people marching" in capsys.readouterr().out
    assert "must be one of test, train" in refused(
        capsys, "vggsound", "vggsound.csv", "--split", "x"
    )


def test_vggsound_files_of_names(folder):
    Path("test.csv").write_text('glLQrEijrKg_000300.mp4,"engine, revving"\n')
    touch("clips/glLQrEijrKg_000300.mp4")
    manifest = imported("vggsound", "test.csv", out="out.csv")
    assert (manifest[0].id, manifest[0].labels) == ("glLQrEijrKg_000300", ("engine, revving",))


def test_epic(folder):
    Path("EPIC_100_train.csv").write_text(EPIC)
    Path("EPIC_100_verb_classes.csv").write_text(VERBS)
    Path("EPIC_100_noun_classes.csv").write_text(NOUNS)
    touch("clips/P01/videos/P01_01.MP4")
    manifest = imported("epic", "EPIC_100_train.csv")
    assert [(entry.id, entry.start, entry.end) for entry in manifest] == [
        ("P01_01_0", 0.14, 3.37),
        ("P01_01_10", 3723.05, 3724.05),
    ]
    assert (manifest[1].verb, manifest[1].noun) == ("verb1", "noun6")
    names = read_labels("labels.txt")
    assert len(names) == 97 + 300
    assert manifest.targets(names, "verb_noun").tolist() == [[3, 8], [1, 6]]
    assert Path("train.missing.txt").read_text() == "P99_01_0\n"


def test_epic_test_set_has_no_labels(folder):
    Path("EPIC_100_test_timestamps.csv").write_text(
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
        "start_frame,stop_frame\nP01_101_0,P01,P01_101,0,00:00:00.14,00:00:03.37,8,202\n"
    )
    Path("EPIC_100_verb_classes.csv").write_text(VERBS)
    Path("EPIC_100_noun_classes.csv").write_text(NOUNS)
    touch("clips/P01_101.MP4")
    manifest = imported("epic", "EPIC_100_test_timestamps.csv")
    assert (manifest[0].verb, manifest[0].noun) == (None, None)


def test_epic_refuses_half_a_list_of_classes(folder, capsys):
    Path("EPIC_100_train.csv").write_text(EPIC)
    Path("EPIC_100_verb_classes.csv").write_text("\n".join(VERBS.splitlines()[:50]))
    assert "id must count from 0 to 96, got 49" in refused(capsys, "epic", "EPIC_100_train.csv")


def test_kinetics_sounds_is_a_list_of_classes(folder, capsys):
    Path("train.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        '"playing drums",abcdefghijk,9,19,train,0\n'
        "tapping pen,bbbbbbbbbbb,0,10,train,0\nabseiling,ccccccccccc,0,10,train,0\n"
    )
    Path("sounds.txt").write_text("tapping pen\nplaying drums\n")
    touch("clips/tapping_pen/bbbbbbbbbbb_000000_000010.mp4", "clips/abcdefghijk_000009_000019.mp4")
    touch("clips/ccccccccccc.mp4")
    manifest = imported("kinetics", "train.csv", "--labels", "sounds.txt", out="out.csv")
    assert [entry.labels for entry in manifest] == [("playing drums",), ("tapping pen",)]
    assert read_labels("labels.txt") == ["tapping pen", "playing drums"]
    assert "left out, of other classes: 1 clips" in capsys.readouterr().out


def test_a_clip_that_is_annotated_twice(folder, capsys):
    Path("a.csv").write_text("abcdefghijk,1,dog,train\nabcdefghijk,1,dog,train\n")
    touch("clips/abcdefghijk_000001.mp4")
    assert len(imported("vggsound", "a.csv")) == 1
    assert "left out, repeated: 1 clips" in capsys.readouterr().out
    Path("a.csv").write_text("abcdefghijk,1,dog,train\nabcdefghijk,1,cat,train\n")
    error = refused(capsys, "vggsound", "a.csv")
    assert "got 'abcdefghijk_000001' with dog and with cat" in error


def test_kinetics_needs_its_columns(folder, capsys):
    Path("train.csv").write_text("label,video\nx,y\n")
    assert "must have the column 'youtube_id'" in refused(capsys, "kinetics", "train.csv")


# Clips.


@pytest.mark.parametrize(
    "name",
    [
        "abc_x.mp4",
        "abc_x_000030.mp4",
        "abc_x_30.webm",
        "abc_x_30.000_40.500.wav",
        "abc_x_30000.flac",
        "abc_x_30000_40500.mp4",
        "abc_x_000030_000040.MP4",
        "Yabc_x.wav",
        "deep/er/abc_x_30_40.5.mkv",
    ],
)
def test_usual_names_of_clips(folder, name):
    touch(f"clips/{name}", "clips/other_000030.mp4", "clips/abc_x.json")
    segment = LabelledSegment("abc_x_30000", "abc_x", 30.0, 40.5)
    found, missing = find_clips([segment], Path("clips"), whole_videos=False)
    assert [(s.id, path.as_posix()) for s, path in found] == [(segment.id, f"clips/{name}")]
    assert not missing


def test_another_segment_of_the_video_is_not_taken(folder):
    touch("clips/abc_000010.mp4")
    found, missing = find_clips([LabelledSegment("abc", "abc", 30.0, 40.0)], Path("clips"), False)
    assert (found, len(missing)) == ([], 1)


def test_video_goes_before_sound_alone(folder):
    touch("clips/a/abc.wav", "clips/b/abc.mp4")
    found, _ = find_clips([LabelledSegment("abc", "abc", 0.0, 1.0)], Path("clips"), False)
    assert found[0][1].suffix == ".mp4"


def test_folders_without_clips(folder):
    with pytest.raises(InputError, match="must be the folder of the clips, got no folder"):
        find_clips([], Path("clips"), False)
    touch("clips/a.txt")
    with pytest.raises(InputError, match="must hold media files, got none"):
        find_clips([], Path("clips"), False)


def test_times():
    path = Path("a.csv")
    assert [seconds(text, path, 1) for text in ("30.000", "1:02", "01:02:03.05")] == [
        30,
        62,
        3723.05,
    ]
    for text in ("", "a", "-1", "nan", "1:-5"):
        with pytest.raises(InputError, match=r"a\.csv: line 1"):
            seconds(text, path, 1)


# Capped classes.


def speech_and_rare(count):
    labels = [("speech",) if k % 10 else ("speech", "rare") for k in range(count)]
    return [LabelledSegment(str(k), str(k), 0.0, 1.0, names) for k, names in enumerate(labels)]


def test_cap_fills_the_frequent_classes_only():
    kept = cap_classes(speech_and_rare(1000), 50, seed=0)
    assert len(kept) == 50
    assert cap_classes(kept, 50, seed=3) == kept
    assert [int(segment.id) for segment in kept] == sorted(int(segment.id) for segment in kept)
    assert cap_classes(speech_and_rare(1000), 1000, seed=0) == speech_and_rare(1000)


def test_cap_depends_on_the_seed_and_not_on_the_order_of_files():
    segments = speech_and_rare(1000)
    kept = {segment.id for segment in cap_classes(segments, 50, seed=0)}
    assert {segment.id for segment in cap_classes(segments[::-1], 50, seed=0)} == kept
    assert {segment.id for segment in cap_classes(segments, 50, seed=1)} != kept


def test_a_missing_clip_changes_the_subset_by_one():
    segments = speech_and_rare(1000)
    kept = {segment.id for segment in cap_classes(segments, 50, seed=0)}
    rest = [segment for segment in segments if segment.id != min(kept)]
    assert len(kept & {segment.id for segment in cap_classes(rest, 50, seed=0)}) == 49


def test_cap_on_the_command_line(audioset, capsys):
    manifest = imported("audioset", audioset, "--cap", "1")
    assert len(manifest) < 3
    assert manifest.class_counts(read_labels("labels.txt")).max() == 1
    assert "left out by --cap 1, seed 0: 1" in capsys.readouterr().out
    assert "--cap must be at least 1" in refused(capsys, "audioset", audioset, "--cap", "0")
