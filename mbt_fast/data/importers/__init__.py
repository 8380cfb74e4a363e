"""Manifests of public data sets, from their official annotation files and a folder of clips."""

from mbt_fast.data.importers import audioset, epic, kinetics, vggsound
from mbt_fast.data.importers.cap import cap_classes
from mbt_fast.data.importers.clips import find_clips
from mbt_fast.data.importers.segment import LabelledSegment
from mbt_fast.data.importers.write import Census, write_labels, write_manifest

# By name: read(annotations, labels) -> (segments, names of all classes).
READERS = {
    "audioset": audioset.read,
    "vggsound": vggsound.read,
    "epic": epic.read,
    "kinetics": kinetics.read,
}

__all__ = [
    "READERS",
    "Census",
    "LabelledSegment",
    "cap_classes",
    "find_clips",
    "write_labels",
    "write_manifest",
]
