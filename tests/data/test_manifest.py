"""Manifests: what a row means, which files are refused and why, and what they cost."""

import json
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing  # makes tensors travel between processes as shared memory

from mbt_fast.data.classes import ClassIndex
from mbt_fast.data.entry import Entry
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.rows import write_rows
from mbt_fast.errors import InputError

CLIPS = """path,id,start,end,labels,note
a.mp4,first,0,2.5,Rain|Wind,x
/data/b.mp4,,1.5,,Wind,
c.mp4,,,,,y

"d, e.mp4",last,,4,"Speech, male",z
"""
HEADS = "path,labels.sum,labels.shown,labels\na,odd,3,x\nb,even,4,y\nc,even,3,z\n"
VERBS = "path,verb,noun\na.mp4,take,pan\nb.mp4,wash,pan\nc.mp4,take,1\n"


@pytest.fixture
def read(tmp_path):
    def read(text, name="clips.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return Manifest.read(path)

    return read


def test_rows_of_a_csv_file(read, tmp_path):
    manifest = read(CLIPS)
    assert list(manifest) == [
        Entry(str(tmp_path / "a.mp4"), "first", 0.0, 2.5, ("Rain", "Wind")),
        Entry("/data/b.mp4", "/data/b.mp4:1.5-", 1.5, None, ("Wind",)),
        Entry(str(tmp_path / "c.mp4"), "c.mp4"),
        Entry(str(tmp_path / "d, e.mp4"), "last", None, 4.0, ("Speech, male",)),
    ]
    assert len(manifest) == 4
    assert manifest.ignored == ("note",)
    with pytest.raises(IndexError, match=r"in 0 \.\. 3, got 4"):
        manifest[4]


def test_jsonl_means_the_same_as_csv(read):
    rows = (
        '{"path": "a.mp4", "id": "first", "start": 0, "end": 2.5, "labels": ["Wind", "Rain"]}\n'
        '{"path": "/data/b.mp4", "start": "1.5", "labels": "Wind", "note": [1]}\n\n'
        '{"path": "c.mp4", "end": null, "labels": []}\n'
        '{"path": "d, e.mp4", "id": "last", "end": 4, "labels": ["Speech, male"]}\n'
    )
    csv, jsonl = read(CLIPS), read(rows, "clips.jsonl")
    assert [set(entry.labels) for entry in jsonl] == [set(entry.labels) for entry in csv]
    assert [entry.id for entry in jsonl] == [entry.id for entry in csv]
    assert [entry.start for entry in jsonl] == [entry.start for entry in csv]
    assert jsonl.hash == csv.hash


def test_indices_in_json_are_labels(read):
    manifest = read('{"path": "a", "labels": 0}\n{"path": "b", "labels": [2, 1]}\n', "a.jsonl")
    assert manifest.label_names() == ("0", "1", "2")
    assert manifest.targets(["x", "y", "z"], "multilabel").tolist() == [[1, 0, 0], [0, 1, 1]]


def test_written_rows_are_read_back(tmp_path):
    rows = [
        {"path": " a\u2028.mp4", "id": 'quo"te', "start": 0.1, "labels": ["x, y", "z"]},
        {"path": "b.mp4", "id": "2", "verb": "take", "noun": "pan", "offset": 512, "size": 7},
        {"path": "c.mp4", "id": "3", "labels.sum": ["x", "y"], "labels.shown": ["z"]},
    ]
    heads = ("labels.sum", "labels.shown")
    columns = ("path", "id", "start", "labels", "verb", "noun", "offset", "size", *heads)
    for name in ("a.csv", "a.jsonl"):
        assert write_rows(tmp_path / name, rows, columns) == 3
        first, second, third = Manifest.read(tmp_path / name)
        assert first == Entry(str(tmp_path / " a\u2028.mp4"), 'quo"te', 0.1, labels=("x, y", "z"))
        assert (second.verb, second.noun, second.offset, second.size) == ("take", "pan", 512, 7)
        assert third.heads == {"sum": ("x", "y"), "shown": ("z",)}


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.csv"
    write_rows(path, [{"path": "old.mp4"}], ["path"])
    with pytest.raises(InputError, match=r"must not hold '\|', got 'x\|y'"):
        write_rows(path, [{"path": "a"}, {"path": "b", "labels": ["x|y"]}], ["path", "labels"])
    assert Manifest.read(path)[0].id == "old.mp4"
    with pytest.raises(InputError, match="UTF-8"):
        write_rows(path, [{"path": "\udcff.mp4"}], ["path"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have rows, got none"),
        ("path,labels\n", "must have rows, got none"),
        (
            "file,labels\na.mp4,x\n",
            "the header must have the column 'path', got ['file', 'labels']",
        ),
        ("path,labels\n,x\n", "line 2: path must name a file, got none"),
        ("path\na\n\n\nb,c\n", "line 5 must have 1 columns like the header, got 2"),
        ('path,labels\na, "x, y"\n', "line 2 must have 2 columns like the header, got 3"),
        ("path,path\na,b\n", "each column must have a name of its own"),
        ("path,start\na,0:10\n", "line 2: start must be a number of at least 0, got '0:10'"),
        ("path,start\na,-1\n", "line 2: start must be a number of at least 0, got '-1'"),
        ("path,start\na,nan\n", "line 2: start must be a number of at least 0, got 'nan'"),
        ("path,end\na,inf\n", "line 2: end must be a number of at least 0, got 'inf'"),
        ("path,start,end\na,2,2\n", "line 2: end must be later than start, got 2 s after 2 s"),
        ("path,labels\na,x||y\n", "line 2: labels must not be empty between separators"),
        ("path,labels\na,x|x\n", "line 2: labels must differ from one another, got 'x|x'"),
        ("path,labels.sum\na,x||y\n", "line 2: labels.sum must not be empty between"),
        ("path,labels.\na,x\n", "line 2: a column labels.HEAD must name a head without ':'"),
        ("path,labels.a:b\na,x\n", "without ':' or spaces around it, got 'labels.a:b'"),
        ("path,labels. a\na,x\n", "without ':' or spaces around it, got 'labels. a'"),
        ("path,offset\na,5\n", "line 2: offset and size must both be given or none"),
        ("path,id\na,1\nb,2\n\nc,1\n", "each id must occur once, got '1' in lines 2 and 5"),
        ("path,id\na,b\nb,\n", "each id must occur once, got 'b' in lines 2 and 3"),
        ("path,start\na,1\na,1.0\n", "got 'a:1.0-' in lines 2 and 3"),
        ('path\n"a\n', "line 2 is not CSV"),
    ],
)
def test_bad_csv_is_refused_with_its_line(read, text, message):
    with pytest.raises(InputError) as raised:
        read(text)
    assert message in str(raised.value)
    assert "clips.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a"}\n{"path": \n', "line 2 is not JSON"),
        ('["a"]\n', "line 1 must be a JSON object"),
        ('{"path": 1.5}\n', "line 1: path must be text, got 1.5"),
        ('{"path": "a", "start": true}\n', "start must be a number of at least 0, got True"),
        ('{"path": "a", "offset": 1.5, "size": 2}\n', "offset must be a number of at least 0"),
        ('{"labels": "x"}\n', "line 1: path must name a file, got none"),
        ('{"path": "a", "labels": [true]}\n', "labels must be text, got True"),
        ('{"path": "a", "labels": {"x": 1}}\n', "labels must be text"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(read, text, message):
    with pytest.raises(InputError) as raised:
        read(text, "clips.jsonl")
    assert message in str(raised.value)


def test_files_that_are_no_manifest(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"path\n\xff\xfe\n")
    (tmp_path / "a.json").write_text("{}")
    for name, message in [
        ("a.csv", "not UTF-8"),
        ("a.json", r"must end in \.csv or \.jsonl"),
        ("b.csv", "No such file"),
    ]:
        with pytest.raises(InputError, match=message):
            Manifest.read(tmp_path / name)


def test_hash_is_of_ids_and_labels(read):
    base = read("path,id,labels\na,1,x|y\nb,2,z\n").hash
    assert read("id,labels,path\n1,y|x,c\n2,z,d\n").hash == base
    others = [
        read("path,id,labels\na,1,x\nb,2,z\n"),
        read("path,id,labels\na,1,x|y\nb,3,z\n"),
        read("path,id,labels\nb,2,z\na,1,x|y\n"),
    ]
    assert len({base, *(manifest.hash for manifest in others)}) == 4


# Labels and targets.


def test_targets_of_several_labels(read):
    manifest = read(CLIPS)
    assert manifest.label_names() == ("Rain", "Speech, male", "Wind")
    names = ["Wind", "Thunder", "Rain", "Speech, male"]
    expected = [[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    targets = manifest.targets(names, "multilabel")
    assert targets.dtype == torch.uint8
    assert targets.tolist() == expected
    assert manifest.class_counts(names).tolist() == [2, 0, 1, 1]
    assert manifest.balanced_weights(names).tolist() == [1.5, 0.5, 0, 1]


def test_targets_of_one_label(read):
    manifest = read("path,labels\na,Wind\nb,0\nc,Rain\n")
    names = ["Wind", "Rain"]
    assert manifest.targets(names, "single").tolist() == [0, 0, 1]
    assert manifest.balanced_weights(names).tolist() == [0.5, 0.5, 1]


def test_targets_of_verbs_and_nouns(read):
    manifest = read(VERBS)
    assert manifest.label_names() == ("verb:take", "verb:wash", "noun:1", "noun:pan")
    names = ["verb:wash", "verb:take", "noun:pan", "noun:plate"]
    assert manifest.targets(names, "verb_noun").tolist() == [[1, 0], [0, 0], [1, 1]]
    assert manifest.class_counts(names).tolist() == [1, 2, 2, 1]
    assert manifest.balanced_weights(names).tolist() == [1, 1.5, 1.5]


def test_verbs_and_nouns_are_counted_beside_a_column_of_labels(read):
    lines = zip(VERBS.splitlines(), ("labels", "P01", "P01", "P02"), strict=True)
    manifest, plain = read("\n".join(map(",".join, lines))), read(VERBS, "plain.csv")
    names = plain.label_names("verb_noun")
    for count in ("class_counts", "balanced_weights"):
        given = getattr(manifest, count)(names, "verb_noun")
        assert torch.equal(given, getattr(plain, count)(names))
    assert manifest.class_counts(["P01", "P02"], "single").tolist() == [2, 1]


def test_targets_of_several_heads(read):
    manifest = read(HEADS)
    assert manifest.label_names("multitask")[:3] == ("sum:even", "sum:odd", "shown:0")
    names = ["shown:4", "shown:3", "sum:odd", "sum:even"]
    assert manifest.targets(names, "multitask").tolist() == [[1, 0], [0, 1], [1, 1]]
    assert manifest.class_counts(names, "multitask").tolist() == [1, 2, 1, 2]
    assert manifest.balanced_weights(names, "multitask").tolist() == [1.5, 1.5, 1]
    assert manifest.label_names("single") == ("x", "y", "z")
    assert manifest[1].heads == {"sum": ("even",), "shown": ("4",)}
    assert manifest.ignored == ()


def test_a_list_of_classes_chooses_among_the_heads(read):
    targets = read(HEADS).targets(["sum:even", "sum:odd"], "multitask")
    assert targets.tolist() == [[1], [0], [0]]


def test_heads_are_the_same_in_every_format(read):
    rows = [
        {"path": "a", "labels": "x", "labels.sum": "odd", "labels.shown": 3},
        {"path": "b", "labels": "y", "labels.sum": "even", "labels.shown": "4"},
        {"path": "c", "labels": ["z"], "labels.sum": ["even"], "labels.shown": 3},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    manifest = read(lines, "heads.jsonl")
    assert manifest.hash == read(HEADS).hash != read(HEADS.replace("4", "3"), "other.csv").hash
    assert [entry.heads for entry in manifest] == [entry.heads for entry in read(HEADS)]


def test_rows_before_the_first_label_of_a_head_have_none(read):
    manifest = read('{"path": "a"}\n{"path": "b", "labels.sum": "odd"}\n', "late.jsonl")
    assert [entry.heads for entry in manifest] == [{}, {"sum": ("odd",)}]
    with pytest.raises(InputError, match=r"line 1: labels\.sum must be one label, got none"):
        manifest.targets(["sum:odd"], "multitask")


@pytest.mark.parametrize(
    ("text", "names", "task"),
    [
        (CLIPS, ["Wind", "Thunder", "Rain", "Speech, male"], "multilabel"),
        ("path,labels\na,Wind\nb,0\nc,Rain\n", ["Wind", "Rain"], "single"),
        (VERBS, ["verb:wash", "verb:take", "noun:pan", "noun:plate"], "verb_noun"),
        (HEADS, ["sum:even", "sum:odd", "shown:3", "shown:4"], "multitask"),
    ],
)
def test_one_target_is_a_row_of_all_targets(read, text, names, task):
    manifest = read(text)
    rows = [manifest.target(row, ClassIndex(names, task)) for row in range(len(manifest))]
    assert torch.equal(torch.stack(rows), manifest.targets(names, task))


def test_drawing_by_balanced_weights_gives_classes_alike(read):
    text = "path,labels\n" + "".join(f"{k},{'rare' if k < 2 else 'common'}\n" for k in range(66))
    manifest = read(text)
    weights = manifest.balanced_weights(["rare", "common"])
    assert weights[:2].sum() == weights[2:].sum() == 1


@pytest.mark.parametrize(
    ("text", "names", "task", "message"),
    [
        (CLIPS, ["Wind"], "multilabel", "line 2: labels must name a class, got 'Rain'"),
        ("path,labels\na,2\n", ["x", "y"], "single", "line 2: labels must name a class, got '2'"),
        (CLIPS, ["Rain", "Wind", "Speech, male"], "single", "line 2: labels must be one label"),
        ("path,labels\na,x\nb,\n", ["x"], "single", "line 3: labels must be one label, got none"),
        (VERBS, ["verb:take", "noun:pan"], "verb_noun", "line 3: verb must name a class, got"),
        (VERBS, ["verb:take", "verb:wash", "noun:pan"], "verb_noun", "noun must name a class"),
        (
            VERBS,
            ["noun:pan", "verb:take"],
            "verb_noun",
            "must be verbs and then nouns, got noun and verb",
        ),
        (HEADS, ["sum:odd"], "multitask", "line 3: labels.sum must name a class, got 'even'"),
        (HEADS, ["sum:odd", "shown:3", "sum:even"], "multitask", "of a head must stand together"),
        (HEADS, ["sum:odd", "even"], "multitask", "must be HEAD:NAME, got 'even'"),
        (HEADS, ["sum:odd", "sum:"], "multitask", "must be HEAD:NAME, got 'sum:'"),
        (HEADS, ["heard:1"], "multitask", "task 'multitask' needs the columns labels.heard, got"),
        (VERBS, ["x"], "single", "task 'single' needs the columns labels, got verb and noun"),
        ("path,label\na,x\n", ["x"], "single", "got no labels and unknown columns label"),
        (CLIPS, ["Rain", "Rain"], "multilabel", "must have a name of its own, got 'Rain' twice"),
    ],
)
def test_labels_that_are_no_targets(read, text, names, task, message):
    manifest = read(text)
    with pytest.raises(InputError) as raised:
        manifest.targets(names, task)
    assert message in str(raised.value)
    if "line" in message:
        row = 1 if "line 3" in message else 0
        with pytest.raises(InputError) as raised:
            manifest.target(row, ClassIndex(names, task))
        assert message in str(raised.value)


def test_a_name_goes_before_an_index(read):
    manifest = read("path,labels\na,1\nb,0\n")
    assert manifest.targets(["1", "x"], "single").tolist() == [0, 0]


# Cost.


def test_workers_share_the_rows(read):
    # Growing memory in workers: a list of a million strings is copied into each of them.
    text = "path,labels\n" + "".join(f"clips/{k:07d}.mp4,{k % 10}\n" for k in range(2000))
    manifest = read(text)
    assert len(ForkingPickler.dumps(manifest)) < 8000 < len(pickle.dumps(manifest))
    copy = pickle.loads(pickle.dumps(manifest))
    assert list(copy) == list(manifest)
    assert copy.hash == manifest.hash


def test_rows_take_few_bytes(read):
    rows = 2000
    text = "path,labels\n" + "".join(f"clips/{k:07d}.mp4,{k % 10}\n" for k in range(rows))
    assert len(pickle.dumps(read(text))) < 80 * rows
