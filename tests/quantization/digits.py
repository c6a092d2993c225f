"""scikit-learn's digits, and two small models that are trained on them in seconds."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.utils.data import TensorDataset


@functools.cache
def digits() -> tuple[TensorDataset, TensorDataset]:
    """``(training, held out)``: images float32 ``[1, 8, 8]`` from 0 to 1, labels int64."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    train, test = train_test_split(range(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + x)


class SmallCNN(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.block1, self.block2 = Residual(width), Residual(width)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(width * 16, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block2(self.pool(self.block1(torch.relu(self.norm(self.stem(x))))))
        return self.head(torch.relu(self.fc(x.flatten(1))))


class SmallViT(nn.Module):
    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        layer = functools.partial(nn.TransformerEncoderLayer, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.Sequential(*(layer(width, 4, 2 * width, dropout=0.0) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.encoder(x)).mean(1))


@functools.cache
def trained(kind: type[nn.Module]) -> nn.Module:
    """A model of that class after some epochs over the training images, in eval mode."""
    images, labels = digits()[0].tensors
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small to share out
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
        epochs, size = (5, 32) if kind is SmallCNN else (18, 64)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        steps = epochs * (len(labels) // size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(labels)).split(size)[: len(labels) // size]:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    torch.set_num_threads(threads)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """On the held-out images, in batches of one size."""
    images, labels = digits()[1].tensors
    results = torch.cat([model(batch).argmax(1) for batch in images.split(60)])
    return (results == labels).double().mean().item()
