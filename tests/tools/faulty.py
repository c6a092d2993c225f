"""Five small models, and faults planted in one layer of each: other weights, and values beyond fp16's range."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class Case:
    """``make()`` gives the model in eval mode and its inputs; ``layer`` is where the fault goes."""

    make: Callable[[], tuple[nn.Module, Any]]
    layer: str


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.act = nn.ReLU()  # called twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList(Residual(8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean((2, 3))))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def residual_net() -> tuple[nn.Module, Any]:
    return ResidualNet(), torch.randn(2, 3, 16, 16)


def mixer() -> tuple[nn.Module, Any]:
    blocks = (MixerBlock(10, 16) for _ in range(2))
    return nn.Sequential(*blocks, nn.LayerNorm(16), nn.Linear(16, 4)), torch.randn(2, 10, 16)


def encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 12, 32)


def timm_vit() -> tuple[nn.Module, Any]:
    import timm

    return timm.create_model("test_vit", pretrained=False, num_classes=7, img_size=64, depth=3), torch.randn(
        1, 3, 64, 64
    )


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    ids = torch.randint(0, 100, (2, 12))
    return BertModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


CASES = {
    "residual CNN": Case(residual_net, "blocks.1.conv2"),
    "MLP mixer": Case(mixer, "1.tokens.2"),
    "transformer encoder": Case(encoder, "layers.1.linear1"),
    "timm ViT": Case(timm_vit, "blocks.1.mlp.fc1"),
    "BERT": Case(bert, "encoder.layer.1.intermediate.dense"),
}


def made(case: Case) -> tuple[nn.Module, Any]:
    """The model of ``case`` as it should be, and its inputs."""
    torch.manual_seed(0)
    model, inputs = case.make()
    return model.eval(), inputs


def perturbed(model: nn.Module, layer: str) -> nn.Module:
    """A copy of ``model`` whose ``layer`` has a tenth more noise in its weights."""
    copied = copy.deepcopy(model)
    weight = copied.get_submodule(layer).weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).to(weight.device)
    with torch.no_grad():
        weight += 0.1 * weight.std() * noise
    return copied


def overflowing(model: nn.Module, layer: str, inputs: Any) -> nn.Module:
    """A copy of ``model`` whose ``layer`` gives values up to 130,000; its weights have their place in fp16."""
    copied = copy.deepcopy(model)
    module = copied.get_submodule(layer)
    largest: list[float] = []
    hook = module.register_forward_hook(lambda _, __, result: largest.append(result.abs().max().item()))
    with torch.no_grad():
        copied(**inputs) if isinstance(inputs, dict) else copied(inputs)
        hook.remove()
        for parameter in module.parameters():
            parameter *= 1.3e5 / largest[0]
            assert parameter.abs().max() < 65504
    return copied
