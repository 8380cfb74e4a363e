"""From media files to the inputs of a model. Reading a file needs the optional package ``av``."""

from mbt_fast.data.audio import log_mel
from mbt_fast.data.clip import Clip, load_clip, read_window
from mbt_fast.data.collate import collate
from mbt_fast.data.entry import Entry
from mbt_fast.data.labels import read_labels
from mbt_fast.data.manifest import Manifest
from mbt_fast.data.pixels import Crop
from mbt_fast.data.transform import ClipTransform

__all__ = [
    "Clip",
    "ClipTransform",
    "Crop",
    "Entry",
    "Manifest",
    "collate",
    "load_clip",
    "log_mel",
    "read_labels",
    "read_window",
]
