"""``mbt-fast predict --explain``: pages and pictures of where attention goes."""

import json
import wave
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from mbt_fast import create_model, rollout
from mbt_fast.cli.main import main
from mbt_fast.data import ClipTransform, load_clip
from mbt_fast.pictures import draw
from mbt_fast.pictures.view import REST, View, views_of

pytest.importorskip("matplotlib", reason="draws the pictures")

NASA = str(Path(__file__).parents[1] / "golden" / "nasa.mp4")
TINY = ["--model", "mbt_tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def explained():
    """Views of a clip, and the rollout that they show."""
    model = create_model("mbt_tiny").eval()
    clip = load_clip(NASA, ClipTransform.from_config(model.config), n_views=2)
    result = rollout(model, clip.inputs)
    return views_of(clip, result, model.config), clip, result


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "nasa.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(torch.randint(-9000, 9000, (16000,), dtype=torch.int16).numpy().tobytes())
    return path


def explain(*arguments):
    return main(["predict", *map(str, arguments), *TINY])


def figure_of(part, view, size=(6, 4)):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    part(figure, view)
    return figure


def test_a_page_and_a_picture_for_each_clip(tmp_path, wav):
    from matplotlib.image import imread

    out, report = tmp_path / "new" / "folder", tmp_path / "report.json"
    assert explain(NASA, wav, "--views", 2, "--explain", out, "--json", report) == 0
    names = ["nasa-2.html", "nasa-2.png", "nasa.html", "nasa.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    clips = json.loads(report.read_text())["clips"]
    assert [clip["pictures"] for clip in clips] == [
        [str(out / "nasa.html"), str(out / "nasa.png")],
        [str(out / "nasa-2.html"), str(out / "nasa-2.png")],
    ]
    page = (out / "nasa.html").read_text()
    tree = ElementTree.fromstring(page)
    headings = [h.text for h in tree.iter("h2")]
    assert headings == [
        "Most probable classes",
        "From 0.00 s to 0.64 s",
        "From 4.36 s to 5.00 s",
        "How to read this",
    ]
    labels = [entry["label"] for entry in clips[0]["classes"]]
    assert [row[0].text for row in tree.iter("tr")][1:] == labels
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in page
    links = [value for node in tree.iter() for name, value in node.attrib.items() if "href" in name]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    for name in ("nasa.png", "nasa-2.png"):
        pixels = imread(out / name)
        assert pixels.shape[1] == draw.WIDTH * 150
        assert pixels[0, 0, :3].tolist() == [1, 1, 1]


def test_equal_predictions_give_equal_files(tmp_path):
    for folder in ("a", "b"):
        explain(NASA, "--views", 1, "--explain", tmp_path / folder)
    for name in ("nasa.html", "nasa.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sound_alone(tmp_path, wav):
    assert explain(wav, "--explain", tmp_path / "out") == 0
    page = (tmp_path / "out" / "nasa.html").read_text()
    assert "log-mel spectrogram" in page
    assert "summed over all frames" not in page
    assert "from rgb" not in page


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert explain(NASA, "--explain", file) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pictures must go to a folder" in line


def test_without_matplotlib_nothing_is_decoded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mbt_fast.profiling.plots.find_spec", lambda name: None)
    assert explain("missing.mp4", "--explain", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'plots need jinja2 and matplotlib; pip install "mbt-fast[bench]"' in line
    assert not (tmp_path / "out").exists()


def test_frames_and_sound_stand_at_their_seconds(explained):
    view = explained[0][1]
    figure = figure_of(draw.draw_timeline, view, draw.timeline_size(view))
    frames, _, sound, _ = figure.axes
    assert frames.get_xlim() == sound.get_xlim() == pytest.approx((4.36, 5.0))
    extents = [image.get_extent()[:2] for image in frames.images]
    assert [left for left, _ in extents] == pytest.approx([4.36, 4.36, 4.68, 4.68])
    widths = [right - left for left, right in extents]
    assert max(widths) <= 0.32, "no frame hides the next"
    assert [image.get_extent()[:2] for image in sound.images] == [pytest.approx((4.36, 5.0))] * 2
    box = frames.get_window_extent()
    square = box.height / box.width * (5.0 - 4.36)
    assert widths == pytest.approx([square] * 4)


def test_the_hue_is_as_strong_as_the_share(explained):
    views, _, result = explained
    figure = figure_of(draw.draw_timeline, views[0], draw.timeline_size(views[0]))
    frames, scale, sound, _ = figure.axes
    maps = result["rgb"][0]
    strength = (maps - maps.min()) / (maps.max() - maps.min()) * draw.STRONGEST
    drawn = torch.stack([torch.as_tensor(im.get_array()[..., 3]) for im in frames.images[1::2]])
    torch.testing.assert_close(drawn.float(), strength.float())
    ends = draw.percents(maps.min().item(), maps.max().item())
    assert [label.get_text() for label in scale.get_yticklabels()] == list(ends)
    # The spectrogram's lowest band, and its part of the map, are at the bottom.
    upright = torch.as_tensor(sound.images[1].get_array()[..., 3]).argmax()
    assert upright == result["spectrogram"][0].mT.flip(0).argmax()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.2, ("0.1 %", "20 %")),
        (0.006101, 0.006118, ("0.61 %", "0.612 %")),
        (0.0, 0.0, ("0 %", "0 %")),
    ],
)
def test_the_scale_tells_its_ends_apart(low, high, expected):
    assert draw.percents(low, high) == expected


def test_shares_of_a_row_sum_to_one(explained):
    views, _, result = explained
    assert list(views[1].shares) == ["from rgb", "from spectrogram", "mean"]
    for row in views[1].shares.values():
        assert sum(row.values()) == pytest.approx(1)
    rest = sum(x[1] for x in result.cls.values()) + result.bottlenecks[1].sum()
    assert views[1].shares["mean"][REST] == pytest.approx(rest.item(), abs=1e-6)


def test_strips_of_every_fused_layer(explained):
    view = explained[0][0]
    figure = figure_of(draw.draw_exchange, view)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        *("rgb reads, %", "rgb writes, %"),
        *("spectrogram reads, %", "spectrogram writes, %"),
    ]
    for axes in figure.axes:
        assert axes.images[0].get_array().shape == (2, 4, 4)  # layers, tokens, colour
        assert list(axes.get_yticks()) == [2, 3]
        assert list(axes.get_xticks()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0"), (0.000001, "<0.01"), (0.00022, "0.02"), (0.0088, "0.88"), (0.137, "14")],
)
def test_a_small_share_in_a_strip_is_short_and_not_zero(share, text):
    flow = torch.full((1, 2), share)
    view = View(None, None, {}, read={"rgb": flow}, written={"rgb": flow}, first_layer=0)
    axes = figure_of(draw.draw_exchange, view).axes
    shown = [written.get_text() for panel in axes for written in panel.texts]
    assert shown == [text] * 4
