"""A DataLoader with workers: the compiled module in the main process, and inside the workers.

    python examples/dataloader_workers.py

Workers that only load data may be forked: they never touch the module. A worker that calls it must be spawned: it
receives the module by pickle, and makes an engine of its own. (In a forked one, a module on a GPU raises UsedAfterFork,
and one on the CPU starts anew.)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import torchtrt_bridge as ttb

BATCH, WIDTH = 16, 24


class Signals(Dataset):
    """Noisy sines; with ``module``, what it makes of them, computed in the worker."""

    def __init__(self, count: int, module: nn.Module | None = None, device: str = "cpu"):
        self.count, self.module, self.device = count, module, device

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        signal = torch.sin(torch.arange(WIDTH) * (index % 7) / 3) + 0.1 * torch.randn(WIDTH, generator=generator)
        if self.module is None:
            return signal
        with torch.no_grad():
            return self.module(signal[None].to(self.device))[0].cpu()


def main(precision: str = "fp32") -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation of the results: the model's, and the compiled module's in either place."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, 8)).eval().to(device)
    example = torch.randn(BATCH, WIDTH, device=device)
    fast = ttb.compile(model, example, precision, dynamic_batch=(1, BATCH, BATCH))

    loader = DataLoader(Signals(40), batch_size=BATCH, num_workers=2, pin_memory=device == "cuda")
    in_workers = DataLoader(
        Signals(40, fast, device), batch_size=BATCH, num_workers=1, multiprocessing_context="spawn"
    )
    with torch.no_grad():
        expected = torch.cat([model(batch.to(device)) for batch in loader]).cpu()
        main_process = torch.cat([fast(batch.to(device)) for batch in loader]).cpu()
        workers = torch.cat(list(in_workers))
    eager = {**summary("main process", expected), **summary("workers", expected)}
    compiled = {**summary("main process", main_process), **summary("workers", workers)}
    for name in eager:
        print(f"{name:<20} eager {eager[name]:.6f}   compiled {compiled[name]:.6f}")
    return eager, compiled


def summary(where: str, results: torch.Tensor) -> dict[str, float]:
    """A few numbers that stand for all results; the last one depends on their order."""
    rising = torch.linspace(0, 1, results.numel())
    return {
        f"{where}, mean": results.mean().item(),
        f"{where}, std": results.std().item(),
        f"{where}, order": (results.flatten() * rising).sum().item(),
    }


if __name__ == "__main__":
    main()
