"""Towers of Hugging Face itself, tiny and random, at sizes that they were not trained on."""

import pytest
import torch

from mbt_fast import fuse

transformers = pytest.importorskip(
    "transformers", reason="the extra 'examples' is not installed", exc_type=ImportError
)
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def vit():
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SIZES)
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


def ast(frames=48):
    config = transformers.ASTConfig(max_length=frames, num_mel_bins=32, patch_size=16, **SIZES)
    model = transformers.ASTModel(config).eval()
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    return model


def late(towers, **options):
    """Unfused, so that every tower's tokens are its own."""
    return fuse(towers, SIZES["num_hidden_layers"], **options).eval()


@pytest.mark.parametrize("size", [(64, 64), (32, 48)], ids=str)
@torch.no_grad()
def test_a_vit_refused_images_of_another_size(size):
    tower, images = vit(), torch.randn(2, 3, *size)
    with pytest.raises(ValueError, match="doesn't match model"):
        late({"rgb": tower})({"rgb": images})
    expected = tower(images, interpolate_pos_encoding=True).last_hidden_state
    actual = late({"rgb": tower}, interpolate_pos_encoding=True)({"rgb": images})["rgb"]
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_an_ast_at_its_own_size_is_itself():
    tower, sound = ast(), torch.randn(2, 48, 32)
    expected = tower(sound).last_hidden_state
    actual = late({"sound": tower}, interpolate_pos_encoding=True)({"sound": sound})["sound"]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("frames", [26, 80])
@torch.no_grad()
def test_an_ast_refused_spectrograms_of_another_length(frames):
    """Positions that depend on the frequency alone are the same at every length."""
    tower, other, sound = ast(), ast(frames), torch.randn(2, frames, 32)
    other.load_state_dict({**tower.state_dict(), "embeddings.position_embeddings":
                           other.embeddings.position_embeddings})  # fmt: skip
    by_frequency = torch.randn(2, 1, SIZES["hidden_size"])
    for model in (tower, other):
        positions = model.embeddings.position_embeddings
        positions[:, :2] = 0.5
        n_frames = model.embeddings.get_shape(model.config)[1]
        positions[0, 2:] = by_frequency.expand(-1, n_frames, -1).flatten(0, 1)
    expected = other(sound).last_hidden_state
    actual = late({"sound": tower}, interpolate_pos_encoding=True)({"sound": sound})["sound"]
    torch.testing.assert_close(actual, expected)


def test_interpolation_needs_a_tower_that_can():
    layer = torch.nn.TransformerEncoderLayer(32, 2, dropout=0.0, norm_first=True, batch_first=True)
    tower = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    with pytest.raises(ValueError, match="must be False without a Hugging Face tower, got True"):
        fuse({"rgb": tower}, 1, interpolate_pos_encoding=True)
    with pytest.raises(TypeError, match="must be a bool, got 1"):
        fuse({"rgb": tower}, 1, interpolate_pos_encoding=1)
