"""From media files to the inputs of a model. Reading a file needs the optional package ``av``."""

from mbt_fast.data.audio import log_mel
from mbt_fast.data.clip import Clip, ClipTransform, load_clip
from mbt_fast.data.labels import read_labels

__all__ = ["Clip", "ClipTransform", "load_clip", "log_mel", "read_labels"]
