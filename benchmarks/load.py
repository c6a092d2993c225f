"""From a saved state dict to the first result in a new process: ResNet-50, on the GPU it was built on.

    python benchmarks/load.py

The clock starts after imports (TensorRT's included) and CUDA's initialisation, and stops when the first result is
there.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import torchtrt_bridge as ttb

CHILD = """
import json, sys, time
import torch, torchtrt_bridge as ttb
from torchtrt_bridge.trt.flavor import flavor
flavor()
path, inputs = sys.argv[1:3]
x, expected = torch.load(inputs)
x = x.cuda(); torch.cuda.synchronize()
start = time.perf_counter()
state = torch.load(path)
loaded = time.perf_counter()
fast = ttb.TRTModule()
fast.load_state_dict(state)
ready = time.perf_counter()
y = fast(x)
torch.cuda.synchronize()
end = time.perf_counter()
error = ((y.cpu() - expected).norm() / expected.norm()).item()
print(json.dumps({"torch.load": loaded - start, "load_state_dict": ready - loaded, "first call": end - ready,
                  "total": end - start, "error": error}))
"""


def main() -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval().cuda()
    x = torch.randn(8, 3, 224, 224, device="cuda")
    for precision in ("fp32", "fp16"):
        fast = ttb.compile(model, (x,), precision=precision)
        expected = fast(x).cpu()
        for with_cache in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                path, inputs = Path(folder, "fast.pth"), Path(folder, "inputs.pth")
                other = fast if with_cache else ttb.TRTModule(_artifact=fast._artifact)
                torch.save(other.state_dict() if with_cache else without_cache(fast), path)
                torch.save((x.cpu(), expected), inputs)
                command = [sys.executable, "-c", CHILD, path, inputs]
                runs = [
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    for _ in range(3 if with_cache else 1)
                ]
            median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            label = "with its runtime cache" if with_cache else "without the cache"
            error = median.pop("error")
            times = ", ".join(f"{key} {value:.3f} s" for key, value in median.items())
            print(f"ResNet-50 {precision}, {label}: {times}, difference {error:.1e}")


def without_cache(fast: ttb.TRTModule) -> dict[str, torch.Tensor]:
    """The state dict as a flavour without runtime caches would save it."""
    from torchtrt_bridge.runtime.artifact import to_tensors

    return to_tensors(fast._loaded(), (torch.empty(0, dtype=torch.uint8),))


if __name__ == "__main__":
    main()
