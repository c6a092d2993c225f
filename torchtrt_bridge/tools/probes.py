"""Questions about this machine that are asked in child processes.

An import may crash (a library for another driver), hang, take seconds, or change the process for good (Torch-TensorRT
puts an alias into ``sys.modules``). So the caller's process imports nothing: each question is a fresh interpreter with
the caller's ``sys.path``, which answers with one line of JSON or not at all.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_MARK = "torchtrt_bridge answers: "
_TIMEOUT_S = 180.0
_AT_ONCE = 3

_START = """
import json, sys, warnings
sys.path[:] = json.loads(sys.argv[1])
warnings.simplefilter("ignore")
argument, answer = sys.argv[2], {}
try:
    exec(sys.argv[3])
    line = {"answer": answer}
except Exception as error:
    lines = str(error).strip().splitlines() or [""]
    line = {"problem": f"{type(error).__name__}: {lines[0]}".rstrip(": "), "detail": str(error)}
sys.stdout.flush()
print("\\n" + sys.argv[4] + json.dumps(line), flush=True)
import os
os._exit(0)  # what was imported may crash when it is torn down, which is no answer to the question
"""

IMPORT = """
import importlib
module = importlib.import_module(argument)
if getattr(module, "__file__", None) is None:
    raise ImportError(f"only a folder without code ({', '.join(module.__path__)})")
answer["version"] = str(getattr(module, "__version__", "")) or None
"""

TORCH = """
import torch
answer["version"], answer["cuda"] = torch.__version__, torch.version.cuda
answer["available"] = torch.cuda.is_available()
answer["gpus"] = []
for index in range(torch.cuda.device_count() if answer["available"] else 0):
    major, minor = torch.cuda.get_device_capability(index)
    answer["gpus"].append([torch.cuda.get_device_name(index), f"sm{major}{minor}"])
"""

DRIVER = """
import pynvml
pynvml.nvmlInit()
text = lambda value: value.decode() if isinstance(value, bytes) else str(value)
answer["driver"] = text(pynvml.nvmlSystemGetDriverVersion())
cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
answer["cuda"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
answer["gpus"] = []
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(gpu)
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu).total
    answer["gpus"].append([text(pynvml.nvmlDeviceGetName(gpu)), f"sm{major}{minor}", memory])
"""

# The smallest engine there is: does this TensorRT build here, and, where there is a GPU, load what it built?
TENSORRT = """
import importlib
trt = importlib.import_module(argument)
if not hasattr(trt, "Builder"):
    raise ImportError(f"no TensorRT, but a folder ({', '.join(getattr(trt, '__path__', ()))})")
answer["version"] = trt.__version__
print("\\n" + sys.argv[4] + json.dumps({"answer": {**answer, "builds": "crashed"}}), flush=True)
class Logger(trt.ILogger):
    said = []
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            self.said.append(message)
logger = Logger()
def build():
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    layer = network.add_identity(network.add_input("x", trt.float32, (4,)))
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        return "it built nothing"
    answer["built"] = True
    import ctypes, ctypes.util
    try:
        count = ctypes.c_int(0)
        if ctypes.CDLL("libcuda.so.1").cuInit(0) != 0:
            return None
    except OSError:
        return None
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return "it built a plan and cannot load it"
    return None if engine.create_execution_context() is not None else "it cannot run what it built"
try:
    problem = build()
except Exception as error:
    problem = f"{type(error).__name__}: {error}".splitlines()[0]
answer["builds"] = problem and problem + (f" ({logger.said[-1].strip()[:200]})" if logger.said else "")
"""

# A model of two layers through one route, all the way: built, and where there is a GPU run and compared with eager.
ROUTE = """
import torch, torchtrt_bridge as ttb
torch.manual_seed(0)
model, x = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU()).eval(), torch.randn(4, 16)
if argument == "cpu":
    module = ttb.compile(model, x, device="cpu")
elif torch.cuda.is_available():
    module = ttb.compile(model.cuda(), x.cuda(), "fp16", backend=argument)
else:
    module = ttb.build(model, x, "fp16", backend=argument)
made = module.provenance
answer["runtime"], answer["where"] = module.report.runtime, module.report.where
answer["tensorrt"] = " ".join(str(made[key]) for key in ("flavour", "tensorrt") if made.get(key))
"""


@dataclasses.dataclass(frozen=True)
class Question:
    """Python that fills a dict ``answer``, with ``argument`` at hand."""

    code: str
    argument: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a child said. ``problem`` is one line: its exception, the signal that ended it, or that it said nothing."""

    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str | None = None
    detail: str = ""


def ask(questions: Mapping[str, Question]) -> dict[str, Answer]:
    """The answers to all ``questions``, a few children at a time."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = {name: pool.submit(_ask, question) for name, question in questions.items()}
        return {name: answer.result() for name, answer in answers.items()}


def _ask(question: Question) -> Answer:
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    command = [sys.executable, "-I", "-c", _START, json.dumps(path), question.argument, question.code, _MARK]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return Answer(problem=f"no answer within {_TIMEOUT_S:.0f} s")
    except OSError as error:
        return Answer(problem=f"{sys.executable} could not be started: {error.strerror}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    said = json.loads(lines[-1].removeprefix(_MARK)) if lines else {}
    ended = _ending(done.returncode)
    if "problem" in said:
        return Answer(problem=said["problem"], detail=said["detail"])
    if "answer" in said:
        data = said["answer"]
        return Answer({**data, "builds": f"building ends the process ({ended})"} if _crashed(data) else data)
    last = (done.stderr.strip().splitlines() or [""])[-1][:200]
    return Answer(problem=f"it ends the process ({ended})" + (f": {last}" if last else ""))


def _crashed(data: Mapping[str, Any]) -> bool:
    return data.get("builds") == "crashed"


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
