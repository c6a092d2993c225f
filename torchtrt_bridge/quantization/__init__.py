"""int8 and fp8: which tensors are quantized, by which scales, written into the captured graph before any route.

See ``docs/precision.md``. The rest of the package uses :func:`.stage.quantize` and :func:`.graph.is_quantized`.
"""
