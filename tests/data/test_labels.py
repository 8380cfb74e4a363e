"""Names of classes from text and CSV files."""

import pytest

from mbt_fast.data import read_labels
from mbt_fast.errors import InputError


def test_audioset_csv(tmp_path):
    path = tmp_path / "class_labels_indices.csv"
    path.write_text('index,mid,display_name\n1,/m/b,"Speech, male"\n0,/m/a,"Cheering"\n')
    assert read_labels(path, 2) == ["Cheering", "Speech, male"]


def test_csv_without_an_index_keeps_its_order(tmp_path):
    path = tmp_path / "labels.CSV"
    path.write_text("code,name\nx,second\ny,first\n")
    assert read_labels(path, 2) == ["second", "first"]


def test_text_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffGeräusch, laut\r\nMusik\r\n\r\n".encode())
    assert read_labels(path, 2) == ["Geräusch, laut", "Musik"]


def test_number_of_names_may_be_unknown(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("rain\nwind\n")
    assert read_labels(path) == ["rain", "wind"]
    path.write_text("\n")
    with pytest.raises(InputError, match="must name the classes, got none"):
        read_labels(path)


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_only_newlines_end_a_name(tmp_path, name):
    names = ["rain\x0bin\x1cthe", "wood\u2028and", "a\x85 field"]
    path = tmp_path / name
    header = ["name"] if name == "a.csv" else []
    path.write_text("\n".join(header + names), encoding="utf-8")
    assert read_labels(path, 3) == names


def test_a_quoted_name_may_hold_a_newline(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('index,name\n0,"wind\nchime"\n1,bell\n')
    assert read_labels(path, 2) == ["wind\nchime", "bell"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"name\n" + b"x" * 200_000, "not a CSV file .field larger"),
        ("a.txt", b"one\ntwo\n", "must name the model's 3 classes, got 2"),
        ("a.txt", b"", "must name the model's 3 classes, got 0"),
        ("a.csv", b"", "must name the model's 3 classes, got 0"),
        ("a.csv", b"index,name\n0,a\n2,b\n3,c\n", "index must count from 0 to 2 without a gap"),
        ("a.csv", b"index,name\n0,a\n1\n", "each line must have 2 columns"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_labels(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_labels(path, 3)
    assert "\n" not in str(raised.value)
