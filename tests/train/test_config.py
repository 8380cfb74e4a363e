"""A training configuration: read from TOML, changed by overrides, checked, written, compared."""

import os
import pickle

import pytest

from mbt_fast.errors import InputError
from mbt_fast.models.registry import config_for
from mbt_fast.train.config import TrainConfig

RECIPE = """
[model]
name = "mbt_tiny"
fusion_layer = 3
input_size = { rgb = [4, 32, 32] }
[data]
train = "lists/train.csv"
labels = "labels.txt"
[train]
task = "multilabel"
epochs = 2
batch_size = 8
lr = 0.5
warmup_epochs = 0.5
"""
FUSED = ['fuse = { rgb = "timm:vit", spectrogram = "hf:ast" }', "fusion_layer = 8"]
FUSED_SIZES = "input_size = { rgb = [1, 224, 224], spectrogram = [1024, 128] }"


@pytest.fixture
def recipe(tmp_path):
    return write(tmp_path, RECIPE)


def write(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def fused(folder, *lines):
    rest = RECIPE[RECIPE.index("[train]") :]
    return write(folder, "\n".join(["[model]", *lines, rest]))


def test_recipe_gives_the_model_and_defaults_fill_the_rest(recipe):
    config = TrainConfig.from_toml(recipe)
    expected = config_for("mbt_tiny", fusion_layer=3, input_size={"rgb": (4, 32, 32)})
    assert config.model.mbt(10) == expected
    assert config.train.epochs == 2
    assert config.train.momentum == 0.9
    assert config.eval.views == 4


def test_override_wins_and_is_read_as_toml_or_as_a_bare_string(recipe):
    overrides = [
        "train.lr=1e-3",
        "train.backend=reference",
        'train.dtype="bfloat16"',
        "augment.scale=[0.9, 1.33]",
        "model.input_size.rgb = [2, 32, 32]",
        "checkpoint.best=false",
    ]
    config = TrainConfig.from_toml(recipe, overrides)
    assert config.train.lr == 1e-3
    assert (config.train.backend, config.train.dtype) == ("reference", "bfloat16")
    assert config.augment.scale == (0.9, 1.33)
    assert config.model.mbt(10).input_size == {"rgb": (2, 32, 32), "spectrogram": (64, 32)}
    assert config.checkpoint.best is False


@pytest.mark.parametrize(("text", "value"), [(".1", 0.1), ("1.", 1.0), ("+.5e-1", 0.05)])
def test_a_number_without_a_digit_at_the_point_is_a_number(recipe, text, value):
    assert TrainConfig.from_toml(recipe, [f"train.lr={text}"]).train.lr == value


def test_an_override_can_take_a_value_of_the_recipe_away(tmp_path):
    recipe = write(tmp_path, RECIPE + "clip_norm = 1.0\n")
    assert TrainConfig.from_toml(recipe).train.clip_norm == 1.0
    assert TrainConfig.from_toml(recipe, ["train.clip_norm=none"]).train.clip_norm is None
    config = TrainConfig.from_toml(recipe, ["train.recompute=none"])
    assert config.train.recompute == "none", "which is a value of that key"


def test_recompute_that_a_fused_pair_would_not_heed_is_refused(tmp_path):
    path = fused(tmp_path, *FUSED, FUSED_SIZES)
    with pytest.raises(InputError, match=r"train\.recompute must be left out with model\.fuse"):
        TrainConfig.from_toml(path, ["train.recompute=mlp"])


def test_paths_start_from_the_file_and_those_of_overrides_from_the_working_directory(
    recipe, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = TrainConfig.from_toml(os.path.relpath(recipe), ["data.val=val.csv"])
    assert config.data.train == str(tmp_path / "lists" / "train.csv")
    assert config.data.val == str(elsewhere / "val.csv")
    assert config.data.test == ""


def test_origin_of_every_value_is_known(recipe):
    config = TrainConfig.from_toml(recipe, ["train.seed=3"]).with_num_classes(7)
    assert set(config.origins) == set(config.to_flat())
    expected = {
        "model.fusion_layer": "recipe",
        "model.hidden_size": "recipe",  # through the name of the model
        "model.input_size.rgb": "recipe",
        "model.num_classes": "labels file",
        "train.lr": "recipe",
        "train.momentum": "default",
        "train.seed": "override",
    }
    assert {key: config.origins[key] for key in expected} == expected


def test_written_configuration_is_read_as_the_same(recipe, tmp_path):
    config = TrainConfig.from_toml(recipe, ["train.seed=3"]).with_num_classes(7)
    (tmp_path / "resolved.toml").write_text(config.to_toml())
    again = TrainConfig.from_toml(tmp_path / "resolved.toml")
    assert again == config
    assert again.differences(config) == []
    assert pickle.loads(pickle.dumps(config)) == config


def test_fused_pair_is_written_and_read_as_the_same(tmp_path):
    config = TrainConfig.from_toml(fused(tmp_path, *FUSED, FUSED_SIZES))
    (tmp_path / "resolved.toml").write_text(config.to_toml())
    assert TrainConfig.from_toml(tmp_path / "resolved.toml") == config
    assert config.model.values["n_bottlenecks"] == 4


def test_differences_are_the_keys_that_change_a_result(recipe):
    one = TrainConfig.from_toml(recipe)
    changes = ["train.lr=0.1", "model.fusion_layer=2", "train.steps=10"]
    harmless = ["data.workers=0", "train.device=cpu", "checkpoint.keep=5", "train.log_every=10"]
    other = TrainConfig.from_toml(recipe, [*changes, *harmless])
    expected = ["model.fusion_layer", "train.epochs", "train.lr", "train.steps"]
    assert one.differences(other) == other.differences(one) == expected


def test_steps_take_the_place_of_the_epochs_of_a_recipe(recipe):
    config = TrainConfig.from_toml(recipe, ["train.steps=100", "train.warmup_steps=10"])
    assert config.train.epochs is None
    assert config.train.total_steps(20) == 100
    assert config.train.total_warmup_steps(20) == 10


def test_epochs_count_whole_batches_alone(recipe):
    loop = TrainConfig.from_toml(recipe).train
    assert loop.total_warmup_steps(31) == 1.5
    assert (loop.steps_per_epoch(31), loop.total_steps(31)) == (3, 6)
    with pytest.raises(InputError, match=r"train\.batch_size must be at most .* 7, got 8"):
        loop.steps_per_epoch(7)


def test_one_modality_of_a_recipe_for_two(recipe):
    config = TrainConfig.from_toml(recipe, ['model.modalities=["spectrogram"]'])
    assert config.model.mbt(10).modalities == ("spectrogram",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bath_size=3", r"train\.bath_size is unknown; did you mean train\.batch_size\?"),
        ("trian.lr=3", r"\[trian\] is unknown; did you mean train\?"),
        ("model.hiden=3", r"model\.hiden is unknown; did you mean model\.hidden_size\?"),
        ("model.name=mbt_tny", r"model\.name 'mbt_tny' is unknown; did you mean mbt_tiny\?"),
        ("train.lr=much", r"train\.lr must be a number, got 'much'"),
        ("train.lr=-1", r"train\.lr must be above 0, got -1"),
        ("train.lr=nan", r"train\.lr must be above 0, got nan"),
        ("data.mean=inf", r"data\.mean must be finite, got inf"),
        ("train.layer_decay=0", r"train\.layer_decay must be in \(0, 1\], got 0"),
        ("train.momentum=1.0", r"train\.momentum must be in \[0, 1\), got 1\.0"),
        ("data.workers=2.5", r"data\.workers must be an integer, got 2\.5"),
        ("data.train=3", r"data\.train must be a string, got 3"),
        ("checkpoint.best=1", r"checkpoint\.best must be true or false, got 1"),
        ("train.dtype=int8", r"train\.dtype must be one of float32, .*, got 'int8'"),
        ("train.backend=best", r"train\.backend must be one of auto, .*, got 'best'"),
        ("train.lr.x=3", r"train\.lr\.x must not be given beside a value of lr"),
        ("model=3", r"override must be section\.key=value, got 'model=3'"),
        ("train.lr", r"override must be section\.key=value, got 'train\.lr'"),
        ("model.fusion_layer=9", r"model\.fusion_layer must be at most num_layers = 4"),
        ("model.input_size.touch=[1, 2]", r"model\.input_size must name only .* 'touch'"),
        ("augment.scale=[2, 1]", r"augment\.scale must be \[least, greatest\], got \[2\.0, 1\.0\]"),
        ("augment.scale=[2]", r"augment\.scale must be a list of 2 values, got \[2\]"),
        ("augment.modality_mixup=true", r"augment\.modality_mixup must go with augment\.mixup"),
        ("augment.time_mask=4", r"augment\.time_mask and augment\.time_masks must both be 0"),
        ("train.micro_batch=3", r"train\.micro_batch must divide train\.batch_size = 8, got 3"),
        ("model.num_classes=0", r"model\.num_classes must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_value_is_one_line_that_names_it(recipe, override, message):
    with pytest.raises(InputError, match=message) as raised:
        TrainConfig.from_toml(recipe, [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epochs=1", "train.steps=2"], r"train\.epochs or train\.steps must be given"),
        (["train.warmup_epochs=1.0", "train.warmup_steps=2"], r"warmup_steps must be given, not"),
        (["train.micro_batch=4", "train.virtual_devices=2"], r"micro_batch must be left out"),
        (["init.vit=a.npz", "init.towers.rgb=run"], r"init\.towers must be given alone"),
        (
            ["train.loss=mean_logits", "augment.mixup=0.3", "augment.modality_mixup=true"],
            r"augment\.modality_mixup must be false with train\.loss",
        ),
        (["init.towers=run"], r"init\.towers must be a table, got 'run'"),
        (["init.towers.rgb=1"], r"init\.towers\.rgb must be a string, got 1"),
        (["init.vit=a.npz", "init.checkpoint=run"], r"init\.checkpoint must be given alone"),
    ],
)
def test_values_that_contradict_one_another(recipe, overrides, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_toml(recipe, overrides)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = 0.5", "", r"recipe\.toml: train\.lr must be given, got none"),
        ("lr = 0.5", "lr = ", r"recipe\.toml: not TOML: .*at line"),
        ("epochs = 2", "", r"recipe\.toml: train\.epochs or train\.steps must be given"),
        ("[data]", "[dat]", r"recipe\.toml: \[dat\] is unknown; did you mean data\?"),
        ("[model]", "seed = 3\n[model]", r"recipe\.toml: seed is unknown"),
        ("[train]", "[eval]\nviews = 0\n[train]", r"eval\.views must be at least 1, got 0"),
    ],
)
def test_bad_file_is_named_with_what_is_wrong(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_toml(write(tmp_path, RECIPE.replace(old, new)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*FUSED], r"model\.input_size must be given with model\.fuse"),
        ([*FUSED, FUSED_SIZES, 'name = "mbt_tiny"'], r"model\.name must be left out"),
        ([*FUSED, FUSED_SIZES, "num_layers = 3"], r"model\.num_layers must be left out"),
        (['fuse = { rgb = "resnet" }', *FUSED[1:], FUSED_SIZES], r'model\.fuse\.rgb must be "timm'),
        ([*FUSED, "input_size = { rgb = [1, 224, 224] }"], r"model\.input_size\.spectrogram must"),
        ([*FUSED, FUSED_SIZES, "[data]", "mask_padding = true"], r"data\.mask_padding must be"),
    ],
)
def test_fused_pair_takes_only_what_fusing_needs(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_toml(fused(tmp_path, *lines))


def test_directory_of_an_encoder_is_made_absolute_and_a_name_is_not(tmp_path):
    (tmp_path / "ast").mkdir()
    config = TrainConfig.from_toml(fused(tmp_path, *FUSED, FUSED_SIZES))
    assert config.model.fuse == {"rgb": "timm:vit", "spectrogram": f"hf:{tmp_path / 'ast'}"}


def test_number_of_labels_must_be_that_of_the_recipe(recipe):
    config = TrainConfig.from_toml(recipe, ["model.num_classes=5"])
    assert config.with_num_classes(5) is config
    with pytest.raises(InputError, match=r"must be the number of labels, 7, got 5"):
        config.with_num_classes(7)


def test_missing_manifest_is_named(recipe):
    config = TrainConfig.from_toml(recipe, ["data.train="])
    with pytest.raises(InputError, match=r"data\.train must name a manifest"):
        config.check_ready()


def test_missing_file_and_unknown_recipe_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: cannot read the configuration \(No such"):
        TrainConfig.from_toml(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"recipe 'audioset_min' is unknown"):
        TrainConfig.from_toml("audioset_min")
