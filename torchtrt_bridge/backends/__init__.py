"""The routes into TensorRT."""
