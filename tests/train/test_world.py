"""The plan of a run on a cluster: what it refuses, shows and assumes."""

import re
from functools import cache

import pytest

from mbt_fast.cli.main import main
from mbt_fast.errors import InputError
from mbt_fast.parallel import counting
from mbt_fast.parallel.machine import Hosts
from mbt_fast.train import world_text
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.machines import DEFAULT, read_machine
from mbt_fast.train.world import make_plan

RECIPE = """
[model]
name = "mbt_tiny"
num_classes = 10
[train]
task = "single"
epochs = 3
batch_size = 32
lr = 0.05
"""


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """What a model keeps is counted once, though each test plans anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "kept_bytes", cache(counting.kept_bytes))
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "recipe.toml"
    path.write_text(RECIPE)
    return path


def configured(recipe, *overrides):
    return TrainConfig.from_toml(recipe, overrides)


def shown(recipe, world, *overrides):
    plan = world_text.parts_of(configured(recipe, *overrides), Hosts.parse(world), DEFAULT)
    return "\n".join(plan)


def changed(tmp_path, old, new):
    text = DEFAULT.read_text()
    assert old in text
    path = tmp_path / "machine.toml"
    path.write_text(text.replace(old, new))
    return path


def row(text, name):
    (line,) = re.findall(rf"^{re.escape(name)}  +(.+)$", text, re.M)
    return re.split(r"  +", line)


def test_plan_is_printed_without_clips_and_without_a_gpu(recipe, capsys):
    arguments = ["train", str(recipe), "--dry-run", "--world", "2x4"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "batch_size = 32" in text
    assert "predicted, nothing of it measured: 2x4 = 8 ranks" in text
    assert row(text, "clips a rank") == ["4", "4", "8"]
    assert row(text, "ranks, rgb : spectrogram")[0] == "any"


def test_curve_reaches_1024_ranks_twice(recipe):
    lines = shown(recipe, "2x4").splitlines()
    ends = [line.split() for line in lines if line.strip().startswith("1,024 ")]
    assert [line[:3] for line in ends] == [["1,024", "256", "<1"], ["1,024", "256", "4"]]
    assert ends[0][3:] == ["-"] * 6, "32 clips are too few"


def test_every_assumption_is_printed(recipe):
    text = shown(recipe, "2x4").partition("assumed:")[2]
    machine = read_machine()
    for share in (machine.efficiency["float32"], machine.overlap):
        assert f"{share:.0%}" in text
    for value in ("67.0 TFLOP/s", "80.0 GB", "3.35 TB/s", "380 GB/s", "47.0 GB/s"):
        assert value in text
    for latency in ("1.90 us", "8.50 us", "10.0 us"):
        assert latency in text
    assert str(DEFAULT) in text
    assert "left out: " in text


def test_auto_is_the_best_precision_of_a_gpu(recipe):
    text = shown(recipe, "2x4", "train.dtype=auto")
    assert "- bfloat16 at 40% of 989 TFLOP/s" in text


def test_optimizer_and_average_take_memory(recipe):
    sgd = shown(recipe, "2x4")
    adamw = shown(recipe, "2x4", "train.optimizer=adamw", "train.ema=0.99")
    weights = row(sgd, "weights")
    assert row(sgd, "optimizer") == weights
    assert row(adamw, "average") == weights
    assert float(row(adamw, "optimizer")[0].split()[0]) == pytest.approx(
        2 * float(weights[0].split()[0]), abs=0.02
    )


def test_run_takes_as_long_as_its_steps(clips):
    config = TrainConfig.from_toml(clips / "recipe.toml")
    text = "\n".join(world_text.parts_of(config, Hosts.parse("4"), DEFAULT))
    assert "manifest" in text
    assert re.search(r"the run:  12 steps, about \S+ seconds by ddp", text)


@pytest.mark.parametrize(
    ("overrides", "world", "divisors"),
    [
        ((), "3", "1, 2, 4, 8, 16, 32"),
        (("train.micro_batch=4",), "16", "1, 2, 4, 8"),
        (("train.virtual_devices=4",), "2x4", "1, 2, 4"),
    ],
)
def test_world_that_cannot_share_the_batch_is_refused_with_those_that_can(
    recipe, overrides, world, divisors
):
    with pytest.raises(InputError, match=rf"must be one of {divisors} with train\.batch_size = 32"):
        shown(recipe, world, *overrides)


def test_ways_that_cannot_be_say_why(recipe):
    text = shown(recipe, "2x4", "train.virtual_devices=8")
    assert row(text, "step")[1:] == ["-", "-"]
    assert "not with train.virtual_devices, each of which clips its own gradient" in text
    text = shown(recipe, "2x4", "model.fusion=vanilla")
    assert "for an MBT whose modalities meet in slots alone" in text
    assert "2 must divide the ranks of a host" in shown(recipe, "2x1")


def test_number_of_classes_must_come_from_somewhere(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("num_classes = 10\n", ""))
    with pytest.raises(InputError, match=r"model\.num_classes, data\.labels or data\.train must"):
        shown(path, "2x4")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert "num_classes = 3 " in shown(path, "2x4", f"data.labels={tmp_path / 'labels.txt'}")


def test_faster_network_gives_a_shorter_step(recipe, tmp_path):
    slow, fast = (
        make_plan(configured(recipe), Hosts(8, 4), machine).here().steps["ddp"]
        for machine in (changed(tmp_path, "bandwidth = 47e9", "bandwidth = 1e6"), DEFAULT)
    )
    assert slow.seconds > fast.seconds


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory = 80e9", "memory = -1.0", r"gpu\.memory must be above 0, got -1\.0"),
        ("memory = 80e9", 'memory = "big"', r"gpu\.memory must be a number, got 'big'"),
        ("overlap = 0.8", "overlap = 1.5", r"collective\.overlap must be in \[0, 1\], got 1\.5"),
        ("overlap = 0.8", "", r"collective\.overlap must be given, got none"),
        ("overlap = 0.8", "overlaps = 0.8", r"collective\.overlaps is unknown; did you mean"),
        ("[link]", "[link", "not TOML"),
    ],
)
def test_machine_file_that_does_not_fit_names_the_key(tmp_path, old, new, message):
    path = changed(tmp_path, old, new)
    with pytest.raises(InputError, match=rf"machine\.toml: .*{message}"):
        read_machine(path)


def test_options_that_need_another_say_so(recipe, capsys):
    assert main(["train", str(recipe), "--world", "2x4"]) == 2
    assert "--world must go with --dry-run" in capsys.readouterr().err
    assert main(["train", str(recipe), "--dry-run", "--machine", "x.toml"]) == 2
    assert "--machine must go with --world" in capsys.readouterr().err


def test_curves_are_drawn(recipe, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "scaling.png"
    assert main(["train", str(recipe), "--dry-run", "--world", "2x4", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    missing = tmp_path / "gone" / "scaling.png"
    arguments = ["train", str(recipe), "--dry-run", "--world", "2x4", "--plot", str(missing)]
    assert main(arguments) == 2
    assert "output must be in a folder that exists" in capsys.readouterr().err


def test_default_machine_says_where_each_value_comes_from():
    values = [line for line in DEFAULT.read_text().splitlines() if re.match(r"\w+ = [\d.]", line)]
    assert len(values) == 14
    sources = ("data sheet", "assumed", "issue", "NCCL")
    tables = DEFAULT.read_text().split("\n\n")
    for value in values:
        (table,) = [table for table in tables if value in table]
        assert any(source.lower() in table.lower() for source in sources), value
