"""Fuse two encoders through bottleneck tokens, and train one step.

python examples/fuse_pretrained.py

The encoders here are new; pretrained ones of timm or Hugging Face are fused in the same way, for
example ``timm.create_model("vit_base_patch16_224", pretrained=True)``.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mbt_fast

WIDTH, LAYERS, CLASSES = 64, 4, 10


def encoder() -> nn.Module:
    """A stand-in for a pretrained encoder."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, dropout=0.0, norm_first=True, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


class Classifier(nn.Module):
    """The fused encoders, and a head that reads the first token of each modality."""

    def __init__(self) -> None:
        """Fuse from the third layer on."""
        super().__init__()
        encoders = {"rgb": encoder(), "spectrogram": encoder()}
        self.fused = mbt_fast.fuse(encoders, fusion_layer=2, n_bottlenecks=4)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logits ``[B, CLASSES]`` by modality."""
        return {name: self.head(tokens[:, 0]) for name, tokens in self.fused(inputs).items()}


def main() -> list[float]:
    """Train on one batch; return the losses."""
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    clips = {"rgb": torch.randn(8, 50, WIDTH), "spectrogram": torch.randn(8, 25, WIDTH)}
    labels = torch.randint(CLASSES, (8,))
    losses = []
    for _ in range(2):
        logits = model(clips)
        loss = torch.stack([cross_entropy(entry, labels) for entry in logits.values()]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    before, after = main()
    print(f"loss {before:.3f}, after one step {after:.3f}")
