"""Load what compile_routes.py saved, in a process that has neither the operator nor its converter.

python examples/custom_layer/load_elsewhere.py compiled/
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import torchtrt_bridge as ttb


def main(folder: Path) -> None:
    """Run each module, and compare with what the model gave where it was compiled."""
    sys.modules["fused_norm"] = None  # type: ignore[assignment]  # as if it were not installed: importing it fails
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for path in sorted(folder.glob("*-*.safetensors")):
        route, precision = path.stem.rsplit("-", 1)
        if route == "expected":
            continue
        known = load_file(folder / f"expected-{precision}.safetensors", device)
        found = ttb.load(path)(known["x"])
        error = ((found - known["expected"]).norm() / known["expected"].norm()).item()
        assert error < (1e-3 if precision == "fp32" else 5e-2), f"{path.name}: relative L2 {error:.1e}"
        print(f"{path.name:<36}loaded without the package, relative L2 {error:.1e}")
    assert not hasattr(torch.ops.fused_norm, "add_rms_norm")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
