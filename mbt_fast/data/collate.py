"""From clips to a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_fast.data.clip import Clip


def collate(
    clips: Sequence[Clip], *, mask_padding: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Stack clips of one view each; a modality that a clip lacks is zeros of length 0.

    Args:
        clips: At least one, all read with the same transform.
        mask_padding: Count what follows the end of a short clip as padding. Without it only a
            modality that is absent has another length than that of a whole input.

    Returns:
        The inputs of all modalities of the transform, ``[B, ...]`` each, and for each one int32
        ``[B]`` lengths as the model takes them. ``None`` in place of the lengths where every clip
        has every modality without padding. An ``rgb`` that every clip lacks is float32.

    Raises:
        ValueError: There is no clip, one has several views, their transforms differ, or one lacks
            a modality and the transform has no ``patch_size``, so that lengths are not known.
    """
    _check(clips)
    transform = clips[0].transform
    inputs, lengths = {}, {}
    for modality, shape in transform.shapes.items():
        given = [clip.inputs[modality] for clip in clips if modality in clip.inputs]
        absent = torch.zeros(1, *shape, dtype=given[0].dtype if given else torch.float32)
        inputs[modality] = torch.cat([clip.inputs.get(modality, absent) for clip in clips])
        if transform.patch_size is not None:
            lengths[modality] = torch.cat([_length(clip, modality, mask_padding) for clip in clips])
    whole = all((length == transform.n_tokens(m)).all() for m, length in lengths.items())
    return inputs, None if whole else lengths


def _check(clips: Sequence[Clip]) -> None:
    if not clips:
        raise ValueError("clips must hold at least one clip, got none")
    transform = clips[0].transform
    for clip in clips:
        if clip.n_views != 1:
            raise ValueError(f"clips must have one view each, got {clip.n_views} of {clip.path}")
        if clip.transform != transform:
            raise ValueError(f"clips must share one transform, got another one of {clip.path}")
        if transform.patch_size is None and len(clip.inputs) < len(transform.shapes):
            raise ValueError(
                f"the transform must have a patch_size where a clip lacks a modality, got none "
                f"and {clip.path}"
            )


def _length(clip: Clip, modality: str, mask_padding: bool) -> Tensor:
    length = clip.lengths.get(modality)
    if length is None:
        return torch.zeros(1, dtype=torch.int32)
    if mask_padding:
        return length
    whole = torch.full_like(length, clip.transform.n_tokens(modality))
    return torch.where(length > 0, whole, length)
