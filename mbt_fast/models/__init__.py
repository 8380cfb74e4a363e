"""The model, its configuration, and the registry of sizes."""

from mbt_fast.models.config import MBTConfig
from mbt_fast.models.mbt import MBT
from mbt_fast.models.registry import create_model, list_models

__all__ = ["MBT", "MBTConfig", "create_model", "list_models"]
