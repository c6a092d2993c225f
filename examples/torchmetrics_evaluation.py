"""torchmetrics: a compiled module as what is measured, and as the feature extractor inside a metric.

    python examples/torchmetrics_evaluation.py

A metric moves its feature extractor along when it is moved itself; a compiled module takes that.
"""

from __future__ import annotations

import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score
from torchmetrics.image.fid import FrechetInceptionDistance

import torchtrt_bridge as ttb

CLASSES, BATCH, SIZE = 4, 32, 16


class Features(nn.Module):
    """Images as bytes, ``uint8[b, 3, 16, 16]``, to 8 features."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.float() / 255)


def main(precision: str = "fp32") -> tuple[dict[str, float], dict[str, float]]:
    """The numbers of the model, and of the compiled module."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labels = torch.randint(0, CLASSES, (200,))
    tints = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200], [120, 120, 120]])
    images = (tints[labels][:, :, None, None] + 40 * torch.randn(200, 3, SIZE, SIZE)).clamp(0, 255).to(torch.uint8)

    features = Features().eval().to(device)
    model = nn.Sequential(features, nn.ReLU(), nn.Linear(8, CLASSES), nn.Softmax(dim=1)).eval().to(device)
    example = images[:BATCH].to(device)
    fast = ttb.compile(model, example, precision, dynamic_batch=(1, BATCH, BATCH))
    fast_features = ttb.compile(features, example, precision, dynamic_batch=(1, BATCH, BATCH))

    eager = measure(model, features, images, labels, device)
    compiled = measure(fast, fast_features, images, labels, device)
    for name in eager:
        print(f"{name:<20} eager {eager[name]:.6f}   compiled {compiled[name]:.6f}")
    return eager, compiled


@torch.no_grad()
def measure(
    model: nn.Module, features: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: str
) -> dict[str, float]:
    """Accuracy, F1 and AUROC of ``model``; Fréchet distance of two classes' images by ``features``."""
    scores = MetricCollection([MulticlassAccuracy(CLASSES), MulticlassF1Score(CLASSES), MulticlassAUROC(CLASSES)])
    scores.to(device)
    # a metric asks its extractor how many features it has, or else calls it once to see
    distance = FrechetInceptionDistance(feature=features, input_img_size=(3, SIZE, SIZE)).to(device)
    for batch, wanted in zip(images.to(device).split(BATCH), labels.to(device).split(BATCH)):
        scores.update(model(batch), wanted)
        distance.update(batch[wanted == 0], real=True)
        distance.update(batch[wanted == 3], real=False)
    return {name: value.item() for name, value in {**scores.compute(), "FrechetDistance": distance.compute()}.items()}


if __name__ == "__main__":
    main()
