"""Generated clips, and a configuration that trains on them in seconds."""

import pytest
import torch

from mbt_fast.data.synthetic import SyntheticSet, write_synthetic
from mbt_fast.train import TrainConfig, report

RECIPE = """
[model]
modalities = ["rgb", "spectrogram"]
input_size = { rgb = [2, 32, 32], spectrogram = [48, 32] }
patch_size = { rgb = [1, 16, 16], spectrogram = [16, 16] }
num_layers = 2
hidden_size = 32
num_heads = 2
mlp_dim = 64
fusion_layer = 1
n_bottlenecks = 2
stochastic_depth = 0.2
[data]
train = "train.csv"
val = "val.csv"
labels = "labels.txt"
workers = 0
broken_limit = 0.2
[augment]
mixup = 0.3
scale = [0.9, 1.33]
[train]
task = "single"
epochs = 3
batch_size = 4
lr = 0.05
[eval]
views = 2
[checkpoint]
every_steps = 3
"""


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """20 clips of 4 classes, 16 of them for training; 2 cannot be read, 3 are without sound."""
    folder = tmp_path_factory.mktemp("clips")
    made = SyntheticSet(20, classes=4, seconds=0.6, broken=0.1, silent=0.15)
    list(write_synthetic(folder, made))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module", autouse=True)  # before the runs that tests of a module share
def one_thread():
    """Leave the cores to the workers: threads that wait for one another suffer most from them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def configure(clips, monkeypatch):
    """The configuration of a short run, with changes such as ``"train.lr=0.1"``.

    Its report is not drawn, which would take longer than the run.
    """
    monkeypatch.setattr(report, "write", lambda *_: None)

    def make(*overrides):
        return TrainConfig.from_toml(clips / "recipe.toml", overrides)

    return make
