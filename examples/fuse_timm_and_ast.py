"""Fuse an image ViT of timm and a sound AST of Hugging Face, and train a step.

python examples/fuse_timm_and_ast.py

Tiny random encoders here. Pretrained ones of one depth and width are, for example,

    timm.create_model("vit_base_patch16_224", pretrained=True, num_classes=0)
    transformers.ASTModel.from_pretrained("MIT/ast-finetuned-audioset-10-10-0.4593")
"""

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import ASTConfig, ASTModel

import mbt_fast

WIDTH, LAYERS, HEADS, CLASSES = 64, 4, 4, 10


def image_encoder() -> nn.Module:
    """Images ``[B, 3, 32, 32]`` to a class token and 16 patches."""
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS, num_classes=0
    )


def sound_encoder() -> nn.Module:
    """Spectrograms ``[B, 48, 32]`` to two class tokens and 8 patches."""
    config = ASTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_length=48,
        num_mel_bins=32,
    )
    return ASTModel(config)


class Classifier(nn.Module):
    """The fused encoders, and a head that reads the first token of each modality."""

    def __init__(self) -> None:
        """Fuse in the second half of the layers."""
        super().__init__()
        towers = {"rgb": image_encoder(), "spectrogram": sound_encoder()}
        self.fused = mbt_fast.fuse(towers, fusion_layer=LAYERS // 2, n_bottlenecks=4)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logits ``[B, CLASSES]`` by modality."""
        return {name: self.head(tokens[:, 0]) for name, tokens in self.fused(inputs).items()}


def main() -> list[float]:
    """Train on one batch; return the losses."""
    torch.manual_seed(0)
    model, losses = Classifier(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    clips = {"rgb": torch.randn(8, 3, 32, 32), "spectrogram": torch.randn(8, 48, 32)}
    labels = torch.randint(CLASSES, (8,))
    for _ in range(2):
        logits = model(clips)  # the loss is the mean of the modalities' losses
        loss = torch.stack([cross_entropy(entry, labels) for entry in logits.values()]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print("loss {:.3f}, after one step {:.3f}".format(*losses))
    return losses


if __name__ == "__main__":
    main()
