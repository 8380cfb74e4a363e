"""Attention rollout: where the attention of all layers together goes."""

from mbt_fast.rollout.compute import rollout
from mbt_fast.rollout.result import Rollout

__all__ = ["Rollout", "rollout"]
