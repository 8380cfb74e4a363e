"""Train an MBT with Accelerate, accumulating gradients over two batches.

The losses do not depend on the number of processes, but for rounding.

python examples/train_with_accelerate.py
torchrun --nproc-per-node 2 examples/train_with_accelerate.py    (or accelerate launch)
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import mbt_fast


class Loss(nn.Module):
    """The official loss. Inside the model, so that a distributed wrapper's forward is called."""

    def __init__(self) -> None:
        """A tiny model; ``mbt_base`` is the paper's."""
        super().__init__()
        self.model = mbt_fast.create_model("mbt_tiny")

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The mean of the modalities' losses."""
        logits = self.model.forward_modalities(inputs)
        return torch.stack([cross_entropy(x, labels) for x in logits.values()]).mean()


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


def main(cpu: bool = True) -> list[float]:
    """Train for two epochs; return the loss of every batch, over all processes."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=cpu, gradient_accumulation_steps=2)
    model = Loss()
    loader: DataLoader = DataLoader(Clips(16), batch_size=4 // accelerator.num_processes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for _ in range(2):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = model(inputs, labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(accelerator.gather(loss).mean().item())
    accelerator.print("losses", losses)
    accelerator.end_training()
    return losses


if __name__ == "__main__":
    main()
