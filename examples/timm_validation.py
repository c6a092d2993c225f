"""timm: a validation loop as timm's own ``validate.py`` has it, around a compiled model.

    python examples/timm_validation.py

timm reads how to prepare images from the model's ``pretrained_cfg``; the compiled module has it too.
"""

from __future__ import annotations

import timm
import torch
from PIL import Image
from timm.data import create_loader, resolve_model_data_config
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.utils.data import Dataset

import torchtrt_bridge as ttb

CLASSES, BATCH = 10, 16


class Discs(Dataset):
    """Images of discs whose radius is the class."""

    def __init__(self, count: int, transform: object = None):
        self.count, self.transform = count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[object, int]:
        noise = torch.randn(96, 96, 3, generator=torch.Generator().manual_seed(index))
        across = torch.arange(96) - 48.0
        disc = (across[:, None] ** 2 + across**2).sqrt() < 4 + 4 * (index % CLASSES)
        pixels = (40 * noise + 160 * disc[..., None]).clamp(0, 255).to(torch.uint8)
        image = Image.fromarray(pixels.numpy())
        return (self.transform(image) if self.transform else image), index % CLASSES


def main(precision: str = "fp32") -> tuple[dict[str, float], dict[str, float]]:
    """Loss and accuracies of the model, and of the compiled module."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model("test_resnet", pretrained=False, num_classes=CLASSES).to(device)
    config = resolve_model_data_config(model)
    example = torch.randn(BATCH, *config["input_size"], device=device)
    with torch.no_grad():  # in the place of training: batch norms and a head that tell images apart
        for _ in range(10):
            model.train()(example)
        model.get_classifier().weight.normal_()
    model.eval()
    fast = ttb.compile(model, example, precision, dynamic_batch=(1, BATCH, BATCH))

    eager, compiled = validate(model, device), validate(fast, device)
    for name in eager:
        print(f"{name:<6} eager {eager[name]:.6f}   compiled {compiled[name]:.6f}")
    return eager, compiled


@torch.inference_mode()
def validate(model: nn.Module, device: str) -> dict[str, float]:
    """What timm's validate.py does, for ``model`` or its compiled form."""
    data_config = resolve_model_data_config(model)
    model = model.to(device, memory_format=torch.channels_last).eval()
    loader = create_loader(
        Discs(60),
        input_size=data_config["input_size"],
        batch_size=BATCH,
        use_prefetcher=device == "cuda",
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=0,
        crop_pct=data_config["crop_pct"],
        persistent_workers=False,
        device=torch.device(device),
    )
    criterion = nn.CrossEntropyLoss().to(device)
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    for images, target in loader:
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        target = target.to(device)
        output = model(images)
        acc1, acc5 = accuracy(output, target, topk=(1, 5))
        losses.update(criterion(output, target).item(), images.size(0))
        top1.update(acc1.item(), images.size(0))
        top5.update(acc5.item(), images.size(0))
    return {"loss": losses.avg, "top1": top1.avg, "top5": top5.avg}


if __name__ == "__main__":
    main()
