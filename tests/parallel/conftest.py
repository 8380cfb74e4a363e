"""Generated clips, and a recipe that trains on them in seconds."""

import pytest

from mbt_fast.data.synthetic import SyntheticSet, write_synthetic

RECIPE = """
[model]
modalities = ["rgb", "spectrogram"]
input_size = { rgb = [2, 32, 32], spectrogram = [32, 32] }
patch_size = { rgb = [1, 16, 16], spectrogram = [16, 16] }
num_layers = 2
hidden_size = 32
num_heads = 2
mlp_dim = 64
fusion_layer = 0
n_bottlenecks = 2
[data]
train = "train.csv"
val = "val.csv"
labels = "labels.txt"
workers = 0
broken_limit = 0.3
[augment]
flip = 0.0
[train]
task = "single"
steps = 5
batch_size = 4
lr = 0.05
device = "cpu"
[eval]
views = 2
[checkpoint]
every_steps = 100
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """Of 17 clips, 12 of them for training; 2 of them cannot be read, and 3 are without sound."""
    folder = tmp_path_factory.mktemp("clips")
    made = SyntheticSet(17, classes=3, seconds=0.4, val=0.3, broken=0.15, silent=0.25)
    list(write_synthetic(folder, made))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"
