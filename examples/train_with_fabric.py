"""Train an MBT with Lightning Fabric: devices, precision and strategy are its arguments.

The losses do not depend on the number of processes, but for rounding.

python examples/train_with_fabric.py
torchrun --nproc-per-node 2 examples/train_with_fabric.py
"""

import os

import torch
from lightning_fabric import Fabric
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import mbt_fast


class Clips(Dataset):
    """Random clips, and a label for each."""

    def __init__(self, count: int) -> None:
        """Draw them."""
        self.rgb = torch.randn(count, 3, 2, 32, 32)
        self.spectrogram = torch.randn(count, 64, 32)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rgb)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        """One clip and its label."""
        return {"rgb": self.rgb[index], "spectrogram": self.spectrogram[index]}, index % 10


def main(precision: str = "bf16-mixed", accelerator: str = "cpu") -> list[float]:
    """Train for two epochs; return the loss of every step, over all processes."""
    torch.manual_seed(0)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this host; torchrun sets it
    hosts = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    fabric = Fabric(accelerator=accelerator, devices=ranks, num_nodes=hosts, precision=precision)
    fabric.launch()
    model = mbt_fast.create_model("mbt_tiny")
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    model.mark_forward_method("forward_modalities")  # precision and strategy apply to it too
    batches = DataLoader(Clips(8), batch_size=4 // fabric.world_size)
    loader = fabric.setup_dataloaders(batches)
    losses = []
    for _ in range(2):
        for inputs, labels in loader:
            logits = model.forward_modalities(inputs)
            loss = torch.stack([cross_entropy(x, labels) for x in logits.values()]).mean()
            optimizer.zero_grad()
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            losses.append(fabric.all_reduce(loss).item())
    fabric.print("losses", losses)
    return losses


if __name__ == "__main__":
    main()
