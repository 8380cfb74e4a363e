"""Heads that pool and the stem that samples frames, against the official model in numpy float64."""

import re

import numpy as np
import official_numpy
import pytest
import torch

from mbt_fast import MBTConfig
from mbt_fast.checkpoint import infer_config, scenic_to_torch, torch_to_scenic
from mbt_fast.errors import CheckpointError
from mbt_fast.flops import forward_flops
from mbt_fast.models.mbt import MBT

FRAMES, READ = 8, 3  # of eight frames three are read where two are asked for
OFFICIAL = {
    "modalities": ("spectrogram", "rgb"),
    "classifier": "gap",
    "method": "3d_conv",
    "n_sampled_frames": 2,
    "fusion": "bottleneck",
    "fusion_layer": 1,
    "share_encoder": False,
    "num_layers": 3,
}
CASES = {
    "gap": {},
    "gap shared": {"share_encoder": True},
    "gap cross-attention": {"fusion": "vanilla"},
    "gap self-attention": {"fusion": "vanilla", "share_encoder": True},
    "gap late": {"fusion_layer": 3},
    "gap rgb": {"modalities": ("rgb",)},
    "gap spectrogram": {"modalities": ("spectrogram",)},
    "per modality": {"classifier": "gap_per_modality"},
    "per modality cross-attention": {"classifier": "gap_per_modality", "fusion": "vanilla"},
    "per modality self-attention": {
        "classifier": "gap_per_modality",
        "fusion": "vanilla",
        "share_encoder": True,
    },
    "per modality rgb": {"classifier": "gap_per_modality", "modalities": ("rgb",)},
    "sampling": {"classifier": "token", "method": "temporal_sampling"},
    "sampling gap": {"method": "temporal_sampling"},
    "sampling all": {"method": "temporal_sampling", "n_sampled_frames": 11},
    "sampling rgb": {
        "classifier": "token",
        "method": "temporal_sampling",
        "modalities": ("rgb",),
    },
}


def case(name):
    """The official options, random official parameters, our config, and inputs channels last."""
    options = {**OFFICIAL, **CASES[name]}
    sampling = options["method"] == "temporal_sampling"
    read = min(FRAMES, READ if options["n_sampled_frames"] == 2 else FRAMES)
    patches = {"rgb": (1 if sampling else 2, 4, 4), "spectrogram": (4, 4)}
    sizes = {"rgb": (read if sampling else FRAMES, 8, 12), "spectrogram": (12, 8)}
    params = official_numpy.parameters(options, sizes, patches)
    config = MBTConfig(
        modalities=options["modalities"],
        input_size={"rgb": (FRAMES, 8, 12), "spectrogram": (12, 8)},
        patch_size=patches,
        hidden_size=16,
        num_layers=options["num_layers"],
        num_heads=2,
        mlp_dim=24,
        num_classes=5,
        n_bottlenecks=4,
        n_sampled_frames=options["n_sampled_frames"] if sampling else 0,
        **{key: options[key] for key in ("fusion", "fusion_layer", "share_encoder", "classifier")},
    )
    rng = np.random.default_rng(1)
    spectrogram = rng.standard_normal((2, 12, 8))
    inputs = {
        "rgb": rng.standard_normal((2, FRAMES, 8, 12, 3)),
        "spectrogram": np.repeat(spectrogram[..., None], 3, -1),
    }
    return options, params, config, {m: inputs[m] for m in config.modalities}


def ours(inputs):
    """Inputs as ``MBT`` takes them."""
    tensors = {m: torch.from_numpy(x) for m, x in inputs.items()}
    return {m: x.movedim(-1, 1) if m == "rgb" else x[..., 0] for m, x in tensors.items()}


def converted(params, config):
    model = MBT(config).double().eval()
    model.load_state_dict(scenic_to_torch(params, config))
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits_of_converted_weights_are_the_official_ones(name):
    options, params, config, inputs = case(name)
    expected = torch.from_numpy(official_numpy.logits(inputs, params, options))
    torch.testing.assert_close(converted(params, config)(ours(inputs)), expected)


@pytest.mark.parametrize("name", CASES)
def test_conversion_goes_back_bit_for_bit(name):
    _, params, config, _ = case(name)
    back = torch_to_scenic(scenic_to_torch(params, config), config)
    assert back.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(back[path], array, strict=True)


@pytest.mark.parametrize("classifier", ["gap", "gap_per_modality"])
@pytest.mark.parametrize("recompute", ["none", "norms"])
def test_padding_takes_no_part_in_a_mean(classifier, recompute):
    options, params, config, inputs = case("gap")
    options, config = options | {"classifier": classifier}, config.replace(classifier=classifier)
    model = converted(params, config).set_execution(recompute=recompute)
    tensors = ours(inputs)
    tensors["spectrogram"][:, 8:] = float("nan")  # the last of three rows of two patches
    lengths = {"spectrogram": torch.tensor([4, 4], dtype=torch.int32)}
    expected = official_numpy.logits(inputs, params, options, valid={"spectrogram": 4})
    torch.testing.assert_close(model(tensors, lengths), torch.from_numpy(expected))


@pytest.mark.parametrize("classifier", ["gap", "gap_per_modality"])
def test_an_absent_modality_takes_no_part_in_a_mean(classifier):
    _, params, config, inputs = case("gap")
    model = converted(params, config.replace(classifier=classifier))
    tensors = ours(inputs)
    present = torch.tensor([0, config.n_tokens("rgb")], dtype=torch.int32)
    mixed = model(tensors, {"rgb": present})
    torch.testing.assert_close(mixed[1:], model(tensors)[1:])
    alone = model({"spectrogram": tensors["spectrogram"]})
    torch.testing.assert_close(mixed[:1], alone[:1])
    absent = torch.zeros(2, dtype=torch.int32)
    nothing = model(tensors, {"rgb": absent, "spectrogram": absent})
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("name", ["per modality", "sampling gap"])
@pytest.mark.parametrize("compiler", ["aot_eager", "export"])
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_and_export(name, compiler):
    _, params, config, inputs = case(name)
    model, tensors = converted(params, config), ours(inputs)
    lengths = {"rgb": torch.tensor([3, 0], dtype=torch.int32)}
    if compiler == "export":
        run = torch.export.export(model, (tensors, lengths)).module()
    else:
        run = torch.compile(model, fullgraph=True, backend=compiler)
    torch.testing.assert_close(run(tensors, lengths), model(tensors, lengths))


def test_a_joint_mean_has_one_loss_and_a_mean_per_modality_has_several():
    _, params, config, inputs = case("gap")
    assert list(converted(params, config).forward_modalities(ours(inputs))) == ["shared"]
    several = converted(params, config.replace(classifier="gap_per_modality"))
    assert list(several.forward_modalities(ours(inputs))) == ["spectrogram", "rgb"]


@pytest.mark.parametrize("name", ["gap", "per modality", "gap self-attention", "sampling gap"])
def test_training_reaches_every_parameter_and_lowers_the_loss(name):
    _, params, config, inputs = case(name)
    model = converted(params, config).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    target = torch.tensor([1, 3])
    losses = []
    for _ in range(4):
        logits = model.forward_modalities(ours(inputs))
        loss = sum(torch.nn.functional.cross_entropy(x, target) for x in logits.values())
        optimiser.zero_grad()
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert not missing, missing
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", ["gap", "per modality", "sampling gap"])
def test_a_saved_model_gives_the_same_logits(tmp_path, name):
    _, params, config, inputs = case(name)
    model = converted(params, config)
    model.save_pretrained(tmp_path)
    loaded = MBT.from_pretrained(tmp_path).eval()  # built on the meta device
    assert loaded.config == config
    assert torch.equal(loaded(ours(inputs)), model(ours(inputs)))


def test_frames_that_are_not_sampled_change_nothing():
    _, params, config, inputs = case("sampling")
    model, tensors = converted(params, config), ours(inputs)
    read = config.sampled_frames("rgb")
    assert len(read) == READ
    before = model(tensors)
    for frame in set(range(FRAMES)) - set(read):
        tensors["rgb"][:, :, frame] = float("nan")
    assert torch.equal(model(tensors), before)


def test_a_mean_is_refused_the_saving_of_cls_rows():
    _, _, config, _ = case("gap")
    with pytest.raises(ValueError, match="cls_only must be False for classifier='gap', got True"):
        MBT(config).set_execution(cls_only=True)
    with pytest.raises(ValueError, match="cls_only must be False for classifier='gap', got True"):
        forward_flops(config, cls_only=True)


def test_the_wrong_head_is_named_before_missing_or_unexpected_names():
    _, params, config, _ = case("sampling")
    with pytest.raises(CheckpointError, match=r"must be 'token' for weights with cls and clsspec"):
        scenic_to_torch(params, config.replace(classifier="gap"))
    _, params, config, _ = case("gap")
    with pytest.raises(CheckpointError, match="must be 'gap' or 'gap_per_modality' for weights"):
        scenic_to_torch(params, config.replace(classifier="token"))


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("gap cross-attention", "gap"),
        ("gap rgb", "gap"),
        ("per modality", "gap_per_modality"),  # the official class cannot have bottlenecks here
    ],
)
def test_a_gap_checkpoint_without_config_is_named_as_such(name, classifier):
    _, params, config, _ = case(name)
    inferred, assumptions = infer_config(params, input_size=config.input_size)
    assert inferred.classifier == classifier
    said = f"classifier is assumed to be {classifier}, for the checkpoint has no CLS token"
    assert said in assumptions
    assert scenic_to_torch(params, inferred).keys() == scenic_to_torch(params, config).keys()


@pytest.mark.parametrize(("read", "asked"), [(3, 3), (6, 5)])  # five of eight reads six
def test_a_checkpoint_of_sampled_frames_tells_how_many_were_read(read, asked):
    options, _, config, _ = case("sampling")
    sizes = {"rgb": (read, 8, 12), "spectrogram": (12, 8)}
    params = official_numpy.parameters(options, sizes, config.patch_size)
    inferred, assumptions = infer_config(params, input_size=config.input_size)
    assert inferred.patch_size["rgb"] == (1, 4, 4)
    assert inferred.grid("rgb") == (read, 2, 3)
    assert f"n_sampled_frames is assumed to be {asked}" in assumptions
    with pytest.raises(CheckpointError, match="n_sampled_frames must be given in the config"):
        infer_config(params, input_size={**config.input_size, "rgb": (2, 8, 12)})


def sines(length, width):
    position = np.arange(length)[:, None]
    channels = np.arange(width)
    angles = position / 10000 ** (2 * (channels // 2) / width)
    return np.where(channels % 2, np.cos(angles), np.sin(angles))[None].astype(np.float32)


def as_the_fork_saves(params, modalities):
    """The official parameters under the names of the AV-MAE fork, without positions."""
    official = {m: "" if m == "rgb" else f"_{m}" for m in modalities}
    fork = {m: "" if m == modalities[0] else f"_{m}" for m in modalities}
    fork = {m: name.replace("spectrogram", "spec") for m, name in fork.items()}
    owners = {official[m]: fork[m] for m in modalities}
    renamed = {}
    for path, array in params.items():
        block = re.fullmatch(r"(Transformer/encoderblock_\d+)(_\w+)?/(.*)", path)
        if block:
            path = f"{block[1]}{owners[block[2] or '']}/{block[3]}"
        elif path.startswith("output_projection"):
            path = f"ProjectionHeadAndClassifier_0/{path}"
        if "posembed_input" not in path:
            renamed[path] = array
    return renamed


@pytest.mark.parametrize("modalities", [("rgb", "spectrogram"), ("spectrogram", "rgb"), ("rgb",)])
@pytest.mark.parametrize("classifier", ["gap_per_modality", "token"])
def test_weights_of_the_av_mae_fork_have_its_logits(modalities, classifier):
    options, _, config, inputs = case("per modality")
    options |= {"modalities": modalities, "classifier": classifier}
    config = config.replace(modalities=modalities, classifier=classifier)
    params = official_numpy.parameters(options, config.input_size, config.patch_size)
    for path in [path for path in params if "posembed_input" in path]:
        params[path] = sines(params[path].shape[1], 16)
    inputs = {m: inputs[m] for m in modalities}
    expected = torch.from_numpy(official_numpy.logits(inputs, params, options))
    model = converted(as_the_fork_saves(params, modalities), config)
    torch.testing.assert_close(model(ours(inputs)), expected)


def test_the_gap_of_the_av_mae_fork_is_one_for_each_modality():
    _, params, config, _ = case("gap")
    weights = as_the_fork_saves(params, config.modalities)
    with pytest.raises(CheckpointError, match="classifier must be 'gap_per_modality' for weights"):
        scenic_to_torch(weights, config)
    with pytest.raises(CheckpointError, match="a config must be given for weights of the AV-MAE"):
        infer_config(weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "gmp"}, "classifier must be one of token, gap, gap_per_modality, got 'gmp"),
        ({"n_sampled_frames": -1}, "n_sampled_frames must be at least 0, got -1"),
        ({"n_sampled_frames": 2}, r"patch_size\['rgb'\] must have one frame if frames are sampled"),
    ],
)
def test_options_that_do_not_exist_or_contradict_are_refused(change, message):
    _, _, config, _ = case("gap")
    with pytest.raises(ValueError, match=message):
        config.replace(**change)
