"""Train two fused Hugging Face encoders with the Hugging Face ``Trainer``.

python examples/train_with_trainer.py

``Trainer`` takes any module that returns its loss first. A clip without sound has a length of 0 and
anything for a spectrogram, so that every rank of a distributed run uses all parameters.
"""

import tempfile

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ASTConfig, ASTModel, Trainer, TrainingArguments, ViTConfig, ViTModel

import mbt_fast

WIDTH, CLASSES = 64, 10
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Classifier(nn.Module):
    """A ViT and an AST, fused, with a head for both."""

    def __init__(self) -> None:
        """Random weights; ``from_pretrained`` gives real ones."""
        super().__init__()
        vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES), add_pooling_layer=False)
        ast = ASTModel(ASTConfig(max_length=48, num_mel_bins=32, **SIZES))
        self.fused = mbt_fast.fuse({"rgb": vit, "spectrogram": ast}, fusion_layer=2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, rgb: Tensor, spectrogram: Tensor, n_sound: Tensor, labels: Tensor) -> tuple:
        """The loss over the modalities that are present, and the logits of each."""
        inputs = {"rgb": rgb, "spectrogram": spectrogram}
        tokens = self.fused(inputs, lengths={"spectrogram": n_sound})
        logits = {name: self.head(x[:, 0]) for name, x in tokens.items()}
        losses = {m: cross_entropy(x, labels, reduction="none") for m, x in logits.items()}
        heard = n_sound > 0
        sound = torch.where(heard, losses["spectrogram"], 0)
        loss = ((losses["rgb"] + sound) / (1 + heard.int())).mean()
        return loss, logits["rgb"], logits["spectrogram"]


def clips(count: int) -> list[dict[str, Tensor | int]]:
    """Random clips; every fourth one has no sound."""
    return [
        {
            "rgb": torch.randn(3, 32, 32),
            "spectrogram": torch.randn(48, 32),
            "n_sound": 0 if index % 4 == 3 else 10,  # two class tokens and 8 patches
            "labels": index % CLASSES,
        }
        for index in range(count)
    ]


def main() -> list[float]:
    """Train for a few steps; return the losses."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, max_steps=4, per_device_train_batch_size=8, learning_rate=1e-3, use_cpu=True,
            logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(Classifier(), options, train_dataset=clips(8))
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print("losses", main())
