"""Clips without sound, clips without pictures, and sound of different lengths, in one batch.

python examples/missing_modalities.py
"""

import torch
from torch.nn.functional import cross_entropy

import mbt_fast

FRAMES, MELS, PATCH = 64, 32, 16  # of a spectrogram of mbt_tiny


def n_tokens(frames: int) -> int:
    """Valid sound tokens of a clip that has this many frames: whole patches, and the class token.

    Patches are in order of time, so that the padded ones come last. Without sound it is 0.
    """
    return 1 + frames // PATCH * (MELS // PATCH) if frames else 0


def collate(sounds: list[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrograms ``[frames, MELS]`` of any length, or none, as one batch and its lengths."""
    batch, lengths = torch.zeros(len(sounds), FRAMES, MELS), []
    for row, sound in zip(batch, sounds, strict=True):
        frames = 0 if sound is None else min(len(sound), FRAMES)
        if sound is not None:
            row[:frames] = sound[:frames]
        lengths.append(n_tokens(frames))
    return batch, torch.tensor(lengths)


def mean_loss(
    logits: dict[str, torch.Tensor], lengths: dict[str, torch.Tensor], labels: torch.Tensor
) -> torch.Tensor:
    """The mean over the clips; of a clip, over the modalities that it has."""
    present = torch.stack([lengths[m] > 0 for m in logits])
    losses = torch.stack([cross_entropy(x, labels, reduction="none") for x in logits.values()])
    return (torch.where(present, losses, 0).sum(0) / present.sum(0).clamp(min=1)).mean()


def main() -> dict[str, float]:
    """Train on a mixed batch; return the loss, and how far an absent sound is from none at all."""
    torch.manual_seed(0)
    model = mbt_fast.create_model("mbt_tiny")
    torch.nn.init.normal_(model.head.weight, std=0.02)
    video = torch.randn(4, 3, 2, 32, 32)
    sound, n_sound = collate(
        [torch.randn(64, MELS), torch.randn(32, MELS), None, torch.randn(64, MELS)]
    )
    n_video = torch.tensor([9, 9, 9, 0])  # the last clip has no pictures
    inputs = {"rgb": video, "spectrogram": sound}
    lengths = {"rgb": n_video, "spectrogram": n_sound}

    labels = torch.randint(10, (4,))
    loss = mean_loss(model.forward_modalities(inputs, lengths), lengths, labels)
    loss.backward()  # every parameter has a gradient, on every rank

    with torch.no_grad():
        logits = model.eval()(inputs, lengths)
        alone = model({"rgb": video[2:3]})  # left out for the whole batch
    return {"loss": loss.item(), "difference": float((logits[2] - alone[0]).abs().max())}


if __name__ == "__main__":
    print(main())
