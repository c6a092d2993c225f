"""torchvision's SSDLite with random weights that finds something."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large


def detector(classes: int = 21) -> nn.Module:
    """In eval mode, on the CPU, for images of 3x320x320: tens of boxes of all classes, their scores well apart.

    Random weights under the running statistics of no data give zeros; so the statistics are those of random images,
    and the class scores are scaled.
    """
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=classes, score_thresh=0.3, detections_per_img=100
    )
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        images, _ = model.transform([torch.rand(3, 320, 320) for _ in range(2)])
        model.head(list(model.backbone(images.tensors).values()))
        for block in model.head.classification_head.module_list:
            block[-1].weight.mul_(3)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return model.eval()
