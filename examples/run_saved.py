"""Run saved modules on saved inputs, in a process that has torch and torchtrt_bridge and nothing of the model.

    python examples/run_saved.py INPUTS.pt RESULTS.pt SAVED...

INPUTS.pt is a dict of keyword arguments. Each SAVED file is a state dict (.pth) or what ``module.save()`` wrote. The
results go to RESULTS.pt, one for each file in order, and how long each took to standard output, as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch

import torchtrt_bridge as ttb


def main(inputs_path: str, results_path: str, *saved: str) -> None:
    inputs = torch.load(inputs_path)
    results, seconds = [], []
    for path in saved:
        start = time.perf_counter()
        if path.endswith(".pth"):
            module = ttb.TRTModule()
            module.load_state_dict(torch.load(path))
        else:
            module = ttb.load(path)
        result = module(**{name: tensor.to(module.device) for name, tensor in inputs.items()}).cpu()
        seconds.append(time.perf_counter() - start)
        results.append(result)
    if "transformers" in sys.modules:
        sys.exit("the model's own library was imported; a saved module must not need it")
    torch.save(results, results_path)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
