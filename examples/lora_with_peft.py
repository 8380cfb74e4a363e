"""Adapt the attention of an MBT by LoRA, and merge the adapters into its weights.

python examples/lora_with_peft.py

Layers see the adapters: a Linear that was replaced is called, and its weight is not used alone.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

import mbt_fast

# "proj" alone would also mean the projection of patches, embed.*.proj.
TARGETS = ["attn.qkv", "attn.proj"]
TRAINED = ["head"]  # in full


def main() -> dict[str, float]:
    """Train the adapters for a step; return losses, and how far merged logits are from adapted."""
    torch.manual_seed(0)
    base = mbt_fast.create_model("mbt_tiny")
    torch.nn.init.normal_(base.head.weight, std=0.02)  # as if it were pretrained
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=TRAINED)
    model = get_peft_model(base, config)
    model.print_trainable_parameters()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    clips = {"rgb": torch.randn(4, 3, 2, 32, 32), "spectrogram": torch.randn(4, 64, 32)}
    labels, losses = torch.randint(10, (4,)), []
    for _ in range(2):
        loss = cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        adapted = model.eval()(clips)
        merged = model.merge_and_unload()(clips)  # an MBT again, at its full speed
    difference = float((merged - adapted).abs().max())
    return {"before": losses[0], "after": losses[1], "difference": difference}


if __name__ == "__main__":
    print(main())
