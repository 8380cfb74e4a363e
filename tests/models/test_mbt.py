"""The model: the official numbers, absent modalities, padding, and every kind of fusion."""

from dataclasses import replace

import golden
import numpy as np
import pytest
import torch
from model_cases import (
    FUSIONS,
    RECOMPUTE,
    RGB,
    SPECTROGRAM,
    executions,
    fusions,
    int32,
    random_inputs,
    tiny,
)

from mbt_fast import MBT, checkpoint, create_model, list_models
from mbt_fast.layers import Execution

BACKENDS = ["reference", "sdpa", "auto"]


def load_golden(name):
    """Config, float64 model with the recorded weights, inputs, and the raw record."""
    record = golden.read(name)
    config = golden.config_of(record)
    model = MBT(config).double()
    state = checkpoint.scenic_to_torch(golden.group(record, "params"), config)
    model.load_state_dict({name: value.double() for name, value in state.items()})
    inputs = {}
    if "rgb" in config.modalities:
        inputs["rgb"] = torch.from_numpy(record["input/rgb"]).double().movedim(-1, 1)
    if "spectrogram" in config.modalities:
        inputs["spectrogram"] = torch.from_numpy(record["input/spectrogram"][..., 0]).double()
    return config, model, inputs, record


def assert_within_float32(actual, recorded):
    """The recorded values are float32: 1e-5 of the largest, as the acceptance of the model asks."""
    recorded = torch.from_numpy(np.asarray(recorded)).double()
    error = (actual - recorded).abs().max()
    assert error <= 1e-5 * recorded.abs().max(), f"relative error {error / recorded.abs().max()}"


@pytest.mark.parametrize("name", golden.NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@executions
def test_official_logits(name, backend, options):
    _, model, inputs, record = load_golden(name)
    model.set_backend(backend).set_execution(**options).eval()
    assert_within_float32(model(inputs), record["logits"])


@pytest.mark.parametrize("name", [n for n in golden.NAMES if "only" not in n])
@executions
def test_official_training_logits(name, options):
    config, model, inputs, record = load_golden(name)
    logits = model.set_execution(**options).train().forward_modalities(inputs)
    assert list(logits) == list(config.modalities)
    for modality, value in logits.items():
        assert_within_float32(value, record[f"train_logits/{modality}"])


@pytest.mark.parametrize("name", [n for n in golden.NAMES if n != "unimodal_eval"])
@pytest.mark.parametrize("backend", BACKENDS)
@executions
def test_official_gradients(name, backend, options):
    config, model, inputs, record = load_golden(name)
    model.set_backend(backend).set_execution(**options).eval()
    weight = torch.from_numpy(record["loss_weight"]).double()
    (model(inputs) * weight).sum().backward()
    grads = {
        key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for key, parameter in model.named_parameters()
    }
    official = checkpoint.torch_to_scenic(grads, config)
    recorded = golden.group(record, "grads")
    assert set(official) == set(recorded)
    largest = max(abs(value).max() for value in recorded.values())
    assert largest > 0
    for path, value in official.items():
        error = abs(value - recorded[path]).max()
        assert error <= 1e-5 * largest, f"{path}: {error} of {largest}"


@fusions
@pytest.mark.parametrize("missing", ["rgb", "spectrogram"])
def test_a_missing_modality_is_a_stream_of_length_zero(fusion, missing):
    model, inputs = tiny(**fusion), random_inputs()
    rest = {modality: x for modality, x in inputs.items() if modality != missing}
    absent = model(inputs, lengths={missing: int32(0, 0, 0)})
    torch.testing.assert_close(absent, model(rest))
    assert not torch.allclose(absent, model(inputs))


@fusions
def test_examples_of_a_batch_do_not_meet(fusion):
    """Lengths and absence of one example change nothing for another."""
    model, inputs = tiny(**fusion), random_inputs()
    lengths = {"rgb": int32(0, 9, 4), "spectrogram": int32(5, 0, 9)}
    together = model(inputs, lengths)
    for index in range(3):
        one = slice(index, index + 1)
        alone = model(
            {m: x[one] for m, x in inputs.items()},
            {m: length[one] for m, length in lengths.items()},
        )
        torch.testing.assert_close(alone, together[one])


@fusions
def test_padding_does_not_matter(fusion):
    """What lies in the patches behind the valid tokens has no influence, not even as NaN."""
    model, inputs = tiny(**fusion), random_inputs()
    lengths = {"spectrogram": int32(5, 3, 1)}  # CLS and 4, 2, 0 patches; 2 patches a row
    dirty = inputs["spectrogram"].clone()
    dirty[0, 32:], dirty[1, 16:], dirty[2] = float("nan"), float("inf"), float("nan")
    results = []
    for spectrogram in (inputs["spectrogram"], dirty):
        logits = model({**inputs, "spectrogram": spectrogram}, lengths)
        parameters = list(model.parameters())
        grads = torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True)
        results.append([logits, *(grad for grad in grads if grad is not None)])
    torch.testing.assert_close(*results)


@fusions
def test_full_lengths_are_no_lengths(fusion):
    model, inputs = tiny(**fusion), random_inputs()
    full = {m: int32(*[model.config.n_tokens(m)] * 3) for m in inputs}
    torch.testing.assert_close(model(inputs, full), model(inputs))
    assert torch.equal(model(inputs, {"rgb": None}), model(inputs))


@fusions
def test_absent_examples_get_no_gradient(fusion):
    model, inputs = tiny(**fusion), random_inputs()
    inputs = {m: x.requires_grad_() for m, x in inputs.items()}
    model(inputs, {"rgb": int32(9, 0, 9)}).sum().backward()
    grad = inputs["rgb"].grad
    assert grad[1].eq(0).all()
    assert grad[0].ne(0).any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_example_without_any_modality_is_zero():
    model, inputs = tiny(), random_inputs()
    logits = model(inputs, {"rgb": int32(0, 9, 9), "spectrogram": int32(0, 9, 9)})
    assert logits[0].eq(0).all()
    assert logits[1:].ne(0).all()


@fusions
def test_logits_are_the_mean_over_present_modalities(fusion):
    model, inputs = tiny(**fusion), random_inputs()
    lengths = {"rgb": int32(0, 9, 9)}
    each = model.forward_modalities(inputs, lengths)
    expected = (each["rgb"] + each["spectrogram"]) / 2
    expected[0] = each["spectrogram"][0]
    torch.testing.assert_close(model(inputs, lengths), expected)


@pytest.mark.parametrize("fusion", ["vanilla", "vanilla, shared"])
def test_vanilla_fuses_at_test_time_in_any_case(fusion):
    """As in the official code, where only bottleneck fusion can be switched off."""
    model = tiny(**FUSIONS[fusion])
    other = MBT(replace(model.config, test_with_bottlenecks=False)).double().eval()
    other.load_state_dict(model.state_dict())
    inputs = random_inputs()
    assert torch.equal(model(inputs), other(inputs))


@pytest.mark.parametrize("fusion", ["bottleneck", "early", "late", "no bottlenecks"])
def test_unfused_layers_are_the_unimodal_encoders(fusion):
    """With late fusion, and in eval mode without bottlenecks, each modality runs alone."""
    model, inputs = tiny(**{**FUSIONS[fusion], "test_with_bottlenecks": False}), random_inputs()
    each = model.forward_modalities(inputs)
    for modality, x in inputs.items():
        torch.testing.assert_close(
            model.forward_modalities({modality: x})[modality], each[modality]
        )
    fused = model.train().forward_modalities(inputs)
    assert torch.allclose(fused["rgb"], each["rgb"]) != (fusion in ("bottleneck", "early"))


def test_vanilla_with_equal_weights_is_joint_self_attention():
    """Eq. 5-6 with one set of weights is Eq. 4, which the paper states."""
    joint = tiny(fusion="vanilla", share_encoder=True)
    pairwise = tiny(fusion="vanilla")
    state = pairwise.state_dict()
    for name, value in joint.state_dict().items():
        for modality in joint.config.modalities:
            state[name.replace(".shared.", f".{modality}.")] = value
    pairwise.load_state_dict({name: state[name] for name in pairwise.state_dict()})
    inputs = random_inputs()
    torch.testing.assert_close(pairwise(inputs), joint(inputs))


def test_three_modalities():
    names = ("rgb", "flow", "spectrogram")
    size = {"rgb": RGB, "flow": (2, 16, 16), "spectrogram": SPECTROGRAM}
    patch = {"rgb": (1, 16, 16), "flow": (2, 8, 8), "spectrogram": (16, 16)}
    model = tiny(modalities=names, input_size=size, patch_size=patch)
    inputs = {**random_inputs(), "flow": torch.randn(3, 3, 2, 16, 16, dtype=torch.float64)}
    logits = model.forward_modalities(inputs)
    assert {name: tuple(value.shape) for name, value in logits.items()} == dict.fromkeys(
        names, (3, 10)
    )
    changed = {**inputs, "flow": inputs["flow"] + 1}
    assert not torch.allclose(model.forward_modalities(changed)["rgb"], logits["rgb"])


def test_tokens_are_in_official_order():
    """RGB index (t, y, x), audio index (time, mel), the last fastest as in the official code."""
    model = create_model("mbt_tiny").double()
    for modality, grid in (("rgb", (2, 2, 2)), ("spectrogram", (4, 2))):
        embed = model.embedding(modality)
        assert model.config.grid(modality) == grid
        torch.nn.init.zeros_(embed.pos_embed)
        base = torch.zeros(1, *embed.input_shape, dtype=torch.float64)
        for index in range(torch.Size(grid).numel()):
            place = [int(i) for i in torch.unravel_index(torch.tensor(index), grid)]
            marked = base.clone()
            corner = [slice(None)] * (marked.ndim - len(grid))
            corner += [
                slice(i * p, (i + 1) * p)
                for i, p in zip(place, model.config.patch_size[modality], strict=True)
            ]
            marked[tuple(corner)] = 1
            moved = (embed(marked) - embed(base))[0].abs().sum(-1).nonzero()[:, 0]
            assert moved.tolist() == [index + 1]


def test_patch_projection_is_a_convolution():
    embed = create_model("mbt_tiny", patch_size={"rgb": (2, 8, 16), "spectrogram": (16, 8)})
    for modality, conv in (("rgb", torch.conv3d), ("spectrogram", torch.conv2d)):
        proj = embed.embedding(modality).proj.double()
        x = torch.randn(2, 3, *embed.config.input_size[modality], dtype=torch.float64)
        expected = conv(x, proj.weight, proj.bias, stride=proj.patch_size).flatten(2).mT
        torch.testing.assert_close(proj(x), expected)


def test_drop_rate_grows_linearly_from_zero():
    model = create_model("mbt_tiny", stochastic_depth=0.3)
    rates = [layer.block_of("spectrogram").drop_rate for layer in model.layers]
    torch.testing.assert_close(rates, [0.0, 0.1, 0.2, 0.3])


def test_dropout_acts_in_training_only():
    model, inputs = tiny(dropout=0.5), random_inputs()
    torch.testing.assert_close(model(inputs), model(inputs))
    model.train()
    assert not torch.allclose(model(inputs), model(inputs))


def test_initialisation_is_the_official_one():
    model = create_model("mbt_base", num_layers=1, fusion_layer=0)
    state = model.state_dict()
    std = {name: float(value.std()) for name, value in state.items() if value.numel() > 1}
    bound = (6 / (768 + 768)) ** 0.5  # Xavier, query, key and value each as 768 x 768
    weight = state["blocks.0.rgb.attn.qkv.weight"]
    assert bound * 0.99 < weight.abs().max() <= bound
    assert state["blocks.0.rgb.mlp.fc1.weight"].abs().max() <= (6 / (768 + 3072)) ** 0.5
    for name in ("head.weight", "embed.rgb.cls_token", "blocks.0.rgb.attn.proj.bias"):
        assert state[name].eq(0).all()
    for name in ("embed.rgb.pos_embed", "bottleneck_tokens"):
        assert std[name] == pytest.approx(0.02, rel=0.1)
    assert std["blocks.0.rgb.mlp.fc2.bias"] == pytest.approx(1e-6, rel=0.1)
    assert std["embed.rgb.proj.weight"] == pytest.approx((3 * 16 * 16) ** -0.5, rel=0.1)
    assert model.norm.eps == model.layers[0].block_of("rgb").norm1.eps == 1e-6


COMPILED = ["bottleneck", "vanilla", "vanilla, shared"]


@pytest.mark.parametrize(
    ("fusion", "compiler"),
    [
        *((fusion, "export") for fusion in COMPILED),
        *(pytest.param(fusion, "aot_eager", marks=pytest.mark.slow) for fusion in COMPILED),
        pytest.param("bottleneck", "inductor", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_and_export(fusion, compiler, request):
    if compiler == "inductor":
        request.getfixturevalue("inductor")
    model, inputs = tiny(**FUSIONS[fusion], num_layers=2, fusion_layer=1), random_inputs()
    lengths = {"rgb": int32(9, 0, 3)}
    if compiler == "export":
        run = torch.export.export(model, (inputs, lengths)).module()
    else:
        run = torch.compile(model, fullgraph=True, backend=compiler)
        torch.testing.assert_close(run(inputs), model(inputs))
    torch.testing.assert_close(run(inputs, lengths), model(inputs, lengths))


def test_autocast_trains():
    model = create_model("mbt_tiny")
    inputs = random_inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs)
    assert logits.dtype == torch.bfloat16
    logits.sum().backward()
    assert model.head.weight.grad.dtype == torch.float32


def test_no_token_is_copied_between_fused_layers(monkeypatch):
    """Streams and slots: nothing of the stream is concatenated or stacked once fusion has begun."""
    model, inputs = tiny(), random_inputs()
    calls = []
    for name in ("cat", "stack"):
        original = getattr(torch, name)

        def spy(tensors, *args, name=name, original=original, **kwargs):
            tensors = list(tensors)
            calls.append((name, tuple(tensors[0].shape)))
            return original(tensors, *args, **kwargs)

        monkeypatch.setattr(torch, name, spy)
    model(inputs)
    embed = [("cat", (3, 1, 64))] * 2
    enter = [("cat", (3, 9, 64))] * 2
    assert calls == [*embed, *enter, ("stack", (3, 10))]


def test_save_and_load(tmp_path):
    model, inputs = tiny(n_bottlenecks=3), random_inputs()
    model.save_pretrained(tmp_path)
    loaded = MBT.from_pretrained(tmp_path).eval()
    assert loaded.config == model.config
    assert torch.equal(loaded(inputs), model(inputs))
    longer = MBT.from_pretrained(tmp_path, input_size={"spectrogram": (128, 32)})
    assert longer.embedding("spectrogram").pos_embed.shape == (1, 17, 64)
    assert torch.equal(longer.embedding("rgb").pos_embed, model.embedding("rgb").pos_embed)


def test_every_listed_model_can_be_created():
    for name in list_models():
        with torch.device("meta"):
            assert create_model(name, num_classes=3).head.out_features == 3
    with pytest.raises(ValueError, match=r"name must be one of mbt_tiny.*got 'mbt_huge'"):
        create_model("mbt_huge")
    with pytest.raises(ValueError, match="no field 'depth'"):
        create_model("mbt_tiny", depth=3)


GOOD = random_inputs(2, torch.float32)
BAD = {
    "not a mapping": (GOOD["rgb"], None, TypeError, "inputs must be a mapping"),
    "unknown": ({"video": GOOD["rgb"]}, None, ValueError, "some of rgb, spectrogram, got 'video'"),
    "nothing": ({}, None, ValueError, "inputs must name some of .*, got none"),
    "shape": (
        {"rgb": GOOD["rgb"][:, :, :1]}, None, ValueError,
        r"inputs\['rgb'\] must have shape \[2, 3, 2, 32, 32\], got \[2, 3, 1, 32, 32\]",
    ),
    "batch": (
        {**GOOD, "spectrogram": GOOD["spectrogram"][:1]}, None, ValueError,
        r"inputs\['spectrogram'\] must have shape \[2, 64, 32\]",
    ),
    "dtype": ({"rgb": GOOD["rgb"].half()}, None, TypeError, "dtype torch.float32 like the"),
    "bytes": ({"rgb": GOOD["rgb"].byte()}, None, TypeError, "got torch.uint8"),
    "none": ({"rgb": None}, None, TypeError, r"inputs\['rgb'\] must be a tensor, got NoneType"),
    "scalar": ({"rgb": torch.tensor(1.0)}, None, ValueError, r"must have shape .* got \[\]"),
    "lengths list": (GOOD, [int32(1, 1)], TypeError, "lengths must be a mapping .* got list"),
    "length name": (GOOD, {"video": int32(1, 1)}, ValueError, "lengths must be of given inputs"),
    "length alone": (
        {"rgb": GOOD["rgb"]}, {"spectrogram": int32(1, 1)}, ValueError,
        "'spectrogram' without input",
    ),
    "length dtype": (
        GOOD, {"rgb": int32(1, 1).short()}, TypeError, r"lengths\['rgb'\] must be an int32",
    ),
    "length value": (GOOD, {"rgb": int32(1, 10)}, ValueError, r"in 0\.\.9, the own tokens, got 10"),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "lengths", "error", "message"), BAD.values(), ids=BAD)
def test_bad_inputs_are_named(inputs, lengths, error, message):
    model = create_model("mbt_tiny")
    with pytest.raises(error, match=message):
        model(inputs, lengths)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of"):
        create_model("mbt_tiny").set_backend("fast")


def test_meta_device_gives_shapes():
    model = create_model("mbt_tiny").to("meta")
    inputs = {m: x.to("meta") for m, x in random_inputs(dtype=torch.float32).items()}
    assert model(inputs).shape == (3, 10)


def test_another_head_may_be_put_on():
    model = create_model("mbt_tiny")
    model.head = torch.nn.Identity()
    assert model(random_inputs(dtype=torch.float32)).shape == (3, 64)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, on the CPU
def test_per_example_gradients_with_lengths():
    """vmap over grad, as for influence functions and differential privacy."""
    model = tiny()
    inputs = random_inputs()
    lengths = {"rgb": int32(9, 0, 4)}
    parameters = dict(model.named_parameters())

    def loss(parameters, inputs, lengths):
        inputs = {m: x.unsqueeze(0) for m, x in inputs.items()}
        lengths = {m: length.unsqueeze(0) for m, length in lengths.items()}
        return torch.func.functional_call(model, parameters, (inputs, lengths)).square().sum()

    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, inputs, lengths)
    model(inputs, lengths).square().sum().backward()
    for name, value in grads.items():
        torch.testing.assert_close(value.sum(0), parameters[name].grad)


def test_options_of_the_execution_are_checked_and_kept():
    model = tiny()
    before = model.execution
    assert model.set_execution(cls_only=True) is model
    assert model.execution != before
    assert model.set_execution(cls_only=False).execution == before
    for name in ("cls_only", "skip_dropped"):
        with pytest.raises(TypeError, match=f"{name} must be a bool, got 'no'"):
            model.set_execution(**{name: "no"})
    with pytest.raises(TypeError, match="cls"):
        model.set_execution(cls=True)
    with pytest.raises(ValueError, match=f"must be one of {', '.join(RECOMPUTE)}, got 'low'"):
        model.set_execution(recompute="low")


@pytest.mark.parametrize(
    ("memory", "recompute"), [("full", "none"), ("reduced", "norms"), ("minimal", "mlp")]
)
def test_the_former_name_of_set_execution_is_deprecated_and_works(memory, recompute):
    model = tiny()
    with pytest.warns(DeprecationWarning, match="use set_execution"):
        model.set_savings(memory=memory, cls_only=True)
    assert model.execution == Execution(cls_only=True, recompute=recompute)
    with (
        pytest.warns(DeprecationWarning, match="use set_execution"),
        pytest.raises(ValueError, match="memory must be one of full, reduced, minimal, got 'low'"),
    ):
        model.set_savings(memory="low")


def test_layers_are_modules_that_are_called():
    """So that hooks, activation checkpointing and FSDP can wrap them."""
    model, seen = tiny(), []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(set(output)))
    model(random_inputs())
    assert seen == [{"rgb", "spectrogram"}] * 4
