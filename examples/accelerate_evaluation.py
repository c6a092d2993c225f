"""Hugging Face accelerate: ``prepare`` takes a compiled module as it takes a model.

    python examples/accelerate_evaluation.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchtrt_bridge as ttb

CLASSES, BATCH, WIDTH = 5, 32, 20


def main(precision: str = "fp32") -> tuple[dict[str, float], dict[str, float]]:
    """Loss and accuracy of the model, and of the compiled module."""
    torch.manual_seed(0)
    accelerator = Accelerator()
    centers = torch.randn(CLASSES, WIDTH)
    labels = torch.randint(0, CLASSES, (100,))
    data = TensorDataset(centers[labels] + torch.randn(100, WIDTH), labels)
    loader = accelerator.prepare(DataLoader(data, batch_size=BATCH))

    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES)).eval()
    model = accelerator.prepare(model)
    example = torch.randn(BATCH, WIDTH, device=accelerator.device)
    fast = ttb.compile(accelerator.unwrap_model(model), example, precision, dynamic_batch=(1, BATCH, BATCH))
    fast = accelerator.prepare(fast)

    eager, compiled = evaluate(accelerator, model, loader), evaluate(accelerator, fast, loader)
    for name in eager:
        print(f"{name:<10} eager {eager[name]:.6f}   compiled {compiled[name]:.6f}")
    return eager, compiled


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> dict[str, float]:
    """The usual loop: results of all processes are gathered, the padding of the last batch is dropped."""
    model.eval()
    scores, wanted = [], []
    for x, y in loader:
        gathered = accelerator.gather_for_metrics((model(x), y))
        scores.append(gathered[0])
        wanted.append(gathered[1])
    all_scores, all_wanted = torch.cat(scores), torch.cat(wanted)
    loss = nn.functional.cross_entropy(all_scores, all_wanted)
    return {"loss": loss.item(), "accuracy": (all_scores.argmax(1) == all_wanted).float().mean().item()}


if __name__ == "__main__":
    main()
