"""From media files to the inputs of a model. Reading a file needs the optional package ``av``."""

from mbt_fast.data.audio import log_mel
from mbt_fast.data.clip import Clip, ClipTransform, load_clip
from mbt_fast.data.labels import read_labels
from mbt_fast.data.manifest import Entry, Manifest

__all__ = ["Clip", "ClipTransform", "Entry", "Manifest", "load_clip", "log_mel", "read_labels"]
