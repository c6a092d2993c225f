"""The only code that imports TensorRT.

``flavor`` binds one TensorRT and says what it can do; ``log`` is where its messages go. ``build`` turns an ONNX model
into a plan, in this process (``builder``) or in a child process (``isolation`` and ``child``); ``request`` holds what
goes in and what comes out. ``engine`` and ``execution`` run a plan.

The modules that the child needs (``builder``, ``child``, ``flavor``, ``log``, ``progress``, ``request``) import neither
torch nor the rest of this package, so that the child starts in a fraction of a second.
"""
