"""The model, its configuration, the registry of sizes, and the fusion of other encoders."""

from mbt_fast.config import MBTConfig
from mbt_fast.models.export import export
from mbt_fast.models.fuse import FusedTowers, fuse
from mbt_fast.models.mbt import MBT
from mbt_fast.models.registry import create_model, list_models

__all__ = ["MBT", "FusedTowers", "MBTConfig", "create_model", "export", "fuse", "list_models"]
