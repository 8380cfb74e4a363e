"""ViT and AST of Hugging Face: names of both versions, directories, and what transformers computes.

Transformers runs in a process of its own, for it looks for a package ``kernels``, which is a folder
of this repository.
"""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mbt_fast import MBTConfig
from mbt_fast.checkpoint import expected_shapes, from_vit, load_ast, load_vit
from mbt_fast.checkpoint.shapes import vit_shapes
from mbt_fast.errors import CheckpointError
from mbt_fast.models.mbt import MBT

WIDTH, MLP, DEPTH, CLASSES = 16, 24, 2, 3

# Activation and eps are those of an MBT; those of published ViTs are the erf GELU and 1e-12.
ORACLE = """
import torch, transformers as hf
from safetensors.torch import save_file
torch.manual_seed(0)
sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
             hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, patch_size=8, num_labels=3,
             attn_implementation="eager")
vit = hf.ViTForImageClassification(hf.ViTConfig(image_size=24, **sizes))
ast = hf.ASTForAudioClassification(hf.ASTConfig(
    max_length=32, num_mel_bins=16, time_stride=8, frequency_stride=8, **sizes))
for name, model in dict(vit=vit, ast=ast).items():
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.double().eval().save_pretrained(name)
    model.save_pretrained(name + "_split", max_shard_size="10KB")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, name + ".safetensors")
image = torch.randn(2, 3, 24, 24, dtype=torch.float64)
sound = torch.randn(2, 32, 16, dtype=torch.float64)
with torch.no_grad():
    tower = ast.audio_spectrogram_transformer
    rows = tower.embeddings(sound)
    rows = torch.cat([rows[:, :1], rows[:, 2:]], 1)  # without the distillation token
    for layer in tower.layers if hasattr(tower, "layers") else tower.encoder.layer:
        rows = layer(rows)
        rows = rows[0] if isinstance(rows, tuple) else rows
    save_file({"image": image, "sound": sound, "logits": vit(image).logits,
               "features": tower.layernorm(rows)[:, 0].contiguous()}, "expected.safetensors")
"""


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """A folder in which transformers has saved two models and what they compute."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed; it is the reference here")
    folder = tmp_path_factory.mktemp("transformers")
    subprocess.run([sys.executable, "-I", "-c", ORACLE], cwd=folder, check=True)
    assert (folder / "vit_split" / "model.safetensors.index.json").exists()
    return folder


def config(modality, size, patch):
    return MBTConfig(
        modalities=(modality,),
        input_size={modality: size},
        patch_size={modality: patch},
        hidden_size=WIDTH,
        num_layers=DEPTH,
        num_heads=2,
        mlp_dim=MLP,
        num_classes=CLASSES,
        fusion_layer=DEPTH,
    )


def started(state_dict, target, **options):
    model = MBT(target).double().eval()
    model.load_state_dict(from_vit(state_dict, target, **options))
    return model


@pytest.mark.parametrize("saved", ["vit", "vit_split", "vit.safetensors", "vit/model.safetensors"])
def test_a_converted_vit_has_the_logits_of_transformers(transformers, saved):
    expected = load_file(transformers / "expected.safetensors")
    target = config("rgb", (1, 24, 24), (1, 8, 8))
    model = started(load_vit(transformers / saved), target, restore_head=True)
    logits = model({"rgb": expected["image"].unsqueeze(2)})
    torch.testing.assert_close(logits, expected["logits"])


@pytest.mark.parametrize("saved", ["ast", "ast_split", "ast/model.safetensors"])
def test_a_converted_ast_has_the_features_of_transformers(transformers, saved):
    expected = load_file(transformers / "expected.safetensors")
    weights, grid = load_ast(transformers / saved)
    assert grid == (4, 2)
    model = started(weights, config("spectrogram", (32, 16), (8, 8)), grid=grid)
    features = model.forward_features({"spectrogram": expected["sound"]})
    torch.testing.assert_close(features["spectrogram"], expected["features"])


# Without transformers, from names written out.


def vit():
    generator = torch.Generator().manual_seed(0)
    shapes = vit_shapes(WIDTH, MLP, DEPTH, (8, 8), 10)
    shapes |= {"head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


VERSIONS = {  # layers, query/key/value, attention output, the MLP's two layers
    4: ("encoder.layer", ("attention.attention.query", "attention.attention.key",
        "attention.attention.value"), "attention.output.dense", "intermediate.dense",
        "output.dense"),
    5: ("layers", ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attention.o_proj", "mlp.fc1", "mlp.fc2"),
}  # fmt: skip


def hugging_face_names(source, version, prefix="vit."):
    """A timm-named ViT under the names of Hugging Face."""
    layers, qkv, output, first, second = VERSIONS[version]
    renamed = {
        f"{prefix}embeddings.cls_token": source["cls_token"],
        f"{prefix}embeddings.position_embeddings": source["pos_embed"],
        f"{prefix}embeddings.mask_token": torch.zeros(1, 1, WIDTH),
    }
    for leaf in ("weight", "bias"):
        patches = source[f"patch_embed.proj.{leaf}"]
        renamed[f"{prefix}embeddings.patch_embeddings.projection.{leaf}"] = patches
        renamed[f"{prefix}layernorm.{leaf}"] = source[f"norm.{leaf}"]
        renamed[f"classifier.{leaf}"] = source[f"head.{leaf}"]
        for layer in range(DEPTH):
            old, new = f"blocks.{layer}", f"{prefix}{layers}.{layer}"
            stacked = source[f"{old}.attn.qkv.{leaf}"].chunk(3)
            for name, part in zip(qkv, stacked, strict=True):
                renamed[f"{new}.{name}.{leaf}"] = part.clone()
            renamed[f"{new}.{output}.{leaf}"] = source[f"{old}.attn.proj.{leaf}"]
            renamed[f"{new}.{first}.{leaf}"] = source[f"{old}.mlp.fc1.{leaf}"]
            renamed[f"{new}.{second}.{leaf}"] = source[f"{old}.mlp.fc2.{leaf}"]
            renamed[f"{new}.layernorm_before.{leaf}"] = source[f"{old}.norm1.{leaf}"]
            renamed[f"{new}.layernorm_after.{leaf}"] = source[f"{old}.norm2.{leaf}"]
    return renamed


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("prefix", ["vit.", "deit.", ""])
def test_names_of_hugging_face_become_those_of_timm(tmp_path, version, prefix):
    save_file(hugging_face_names(vit(), version, prefix), tmp_path / "model.safetensors")
    assert_equal(load_vit(tmp_path / "model.safetensors"), vit())
    torch.save(hugging_face_names(vit(), version, prefix), tmp_path / "pytorch_model.bin")
    assert_equal(load_vit(tmp_path / "pytorch_model.bin"), vit())
    (tmp_path / "model.safetensors").unlink()
    assert_equal(load_vit(tmp_path), vit())


def test_a_pooler_is_dropped_but_not_from_under_a_head(tmp_path):
    names = hugging_face_names(vit(), 4, "")
    names |= {"pooler.dense.weight": torch.zeros(WIDTH, WIDTH), "pooler.dense.bias": torch.zeros(1)}
    save_file(names, tmp_path / "model.safetensors")
    weights, target = load_vit(tmp_path), config("rgb", (1, 24, 24), (1, 8, 8))
    assert from_vit(weights, target).keys() == expected_shapes(target).keys()
    with pytest.raises(CheckpointError, match=r"restore_head .* got pre_logits\.fc"):
        from_vit(weights, target, restore_head=True)


def test_a_layer_without_a_key_is_named(tmp_path):
    names = hugging_face_names(vit(), 4)
    del names["vit.encoder.layer.1.attention.attention.key.bias"]
    save_file(names, tmp_path / "model.safetensors")
    message = r"blocks\.1\.attn\.qkv\.bias must be query, key and value, got 2 of them"
    with pytest.raises(CheckpointError, match=message):
        load_vit(tmp_path)


def ast(mel, time, prefix="audio_spectrogram_transformer."):
    """An AST under the names of Hugging Face, with position (mel, time) = ``100 mel + time``."""
    names = hugging_face_names(vit(), 4, prefix)
    embeddings = f"{prefix}embeddings."
    number = 100 * torch.arange(mel)[:, None] + torch.arange(time)
    positions = torch.cat([torch.tensor([-1, -2]), number.flatten()]).float()
    names |= {
        f"{embeddings}distillation_token": torch.zeros(1, 1, WIDTH),
        f"{embeddings}position_embeddings": positions[None, :, None].repeat(1, 1, WIDTH),
        f"{embeddings}patch_embeddings.projection.weight": torch.randn(WIDTH, 1, 8, 8),
        "classifier.dense.weight": names.pop("classifier.weight"),
        "classifier.dense.bias": names.pop("classifier.bias"),
        "classifier.layernorm.weight": torch.ones(WIDTH),
        "classifier.layernorm.bias": torch.zeros(WIDTH),
    }
    del names[f"{embeddings}mask_token"]
    return names


def test_an_ast_is_turned_from_mel_by_time_to_time_by_mel(tmp_path):
    names = ast(mel=12, time=5)
    save_file(names, tmp_path / "ast.safetensors")
    weights, grid = load_ast(tmp_path / "ast.safetensors")
    assert grid == (5, 12)  # without a config: twelve along mel
    assert weights["pos_embed"][0, 0, 0] == -1
    expected = torch.arange(5)[:, None] + 100 * torch.arange(12)
    assert torch.equal(weights["pos_embed"][0, 1:, 0], expected.flatten().float())
    kernel = names["audio_spectrogram_transformer.embeddings.patch_embeddings.projection.weight"]
    torch.testing.assert_close(weights["patch_embed.proj.weight"].sum(1), kernel[:, 0].mT)
    assert not any(name.startswith(("head", "dist_token")) for name in weights)


def test_files_of_the_ast_repository_are_read_too(tmp_path):
    (kernel, *_), source = torch.randn(1, WIDTH, 1, 8, 8), vit()
    own = {f"module.v.{name}": tensor for name, tensor in source.items()}
    own |= {
        "module.v.patch_embed.proj.weight": kernel,
        "module.v.pos_embed": torch.zeros(1, 2 + 12 * 3, WIDTH),
        "module.v.dist_token": torch.zeros(1, 1, WIDTH),
        "module.v.head_dist.weight": torch.zeros(CLASSES, WIDTH),
        "module.mlp_head.0.weight": torch.ones(WIDTH),
        "module.mlp_head.1.weight": torch.zeros(CLASSES, WIDTH),
    }
    torch.save(own, tmp_path / "audioset_10_10_0.4593.pth")
    weights, grid = load_ast(tmp_path / "audioset_10_10_0.4593.pth")
    assert grid == (3, 12)
    target = config("spectrogram", (24, 96), (8, 8))
    assert from_vit(weights, target, grid=grid).keys() == expected_shapes(target).keys()


def test_a_grid_that_an_ast_does_not_have_is_refused(tmp_path):
    save_file(ast(mel=8, time=5), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"grid must have 40 positions, got \(3, 12\)"):
        load_ast(tmp_path / "model.safetensors")
    assert load_ast(tmp_path / "model.safetensors", grid=(5, 8))[1] == (5, 8)
    weights, _ = load_ast(tmp_path / "model.safetensors", grid=(5, 8))
    target = config("spectrogram", (40, 64), (8, 8))
    with pytest.raises(CheckpointError, match="grid must have the 40 positions of the ViT"):
        from_vit(weights, target, grid=(4, 8))


def test_the_wrong_reader_names_the_right_one(tmp_path):
    save_file(ast(mel=12, time=2), tmp_path / "ast.safetensors")
    with pytest.raises(CheckpointError, match="three input channels, got one, as an AST has"):
        load_vit(tmp_path / "ast.safetensors")
    save_file(vit(), tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match=r"an AST must have .* with one channel"):
        load_ast(tmp_path / "vit.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "must hold model.safetensors or pytorch_model.bin, got neither"),
        ("{", "not a JSON file"),
        ("[]", "must hold a JSON object, got list"),
        ('{"weight_map": {}}', "weight_map must name files beside it, got []"),
        ('{"weight_map": {"a": "../a.bin"}}', "weight_map must name files beside it, got ['../a"),
        ('{"weight_map": 3}', "weight_map must be a mapping, got 3"),
    ],
)
def test_a_directory_without_whole_weights_says_what_is_missing(tmp_path, index, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_vit(tmp_path)
