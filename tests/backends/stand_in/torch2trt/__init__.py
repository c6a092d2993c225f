"""A tracer with the few names of torch2trt that the route uses, and a handful of converters. See test_torch2trt.py."""

from .torch2trt import *  # noqa: F403
