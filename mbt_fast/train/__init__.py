"""Training: from a manifest of media files to a checkpoint, a curve and a score."""

from mbt_fast.train import metrics
from mbt_fast.train.config import TrainConfig
from mbt_fast.train.loop import Outcome, train

__all__ = ["Outcome", "TrainConfig", "metrics", "train"]
