"""Compile a model with the custom layer by each route, compare, save; then load where the package is not installed.

    pip install ./examples/custom_layer
    python examples/custom_layer/compile_routes.py compiled/

The converter comes with the package: nothing here mentions it. On a GPU the reference is the Triton kernel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from fused_norm import Block
from safetensors.torch import save_file

import torchtrt_bridge as ttb

ROUTES = ("onnx", "torch_tensorrt", "torch2trt")


def main(folder: Path, precision: str = "fp32") -> dict[str, str]:
    """What came of each route; the modules, and what they must give, are in ``folder``."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Block().eval().to(device)
    x = torch.randn(2, 8, 64, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        save_file({"x": x, "expected": model(x)}, folder / f"expected-{precision}.safetensors")
    found = {}
    for route in ROUTES:
        try:
            fast = ttb.compile(model, x, precision, backend=route, hybrid=False, dynamic_batch=(1, 2, 8))
        except ttb.errors.BridgeError as error:
            found[route] = f"no: {str(error).splitlines()[0]}"
            continue
        fast.save(folder / f"{route}-{precision}.safetensors")
        worst = max(row["relative_l2"] for row in fast.report.verification)
        found[route] = f"runs by {fast.report.runtime}, relative L2 against eager at most {worst:.1e}"
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ttb.errors.RunsOnCPU)
    for route, outcome in main(options.folder, options.precision).items():
        print(f"{route:<16}{outcome}")
    loading = Path(__file__).with_name("load_elsewhere.py")
    subprocess.run([sys.executable, str(loading), str(options.folder)], check=True)
