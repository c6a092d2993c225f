"""One lock for all that traces: torch.export, decompositions, fake tensors and torch's serde keep process-wide state.

Two threads in any two of them at once were seen to mistake a model's parameters for new constants.
"""

import threading

export_lock = threading.RLock()
