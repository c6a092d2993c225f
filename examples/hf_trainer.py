"""Hugging Face ``Trainer.evaluate`` and ``predict`` with a compiled model.

    python examples/hf_trainer.py

The Trainer drops the columns that are no arguments of the model's forward: a compiled module has the model's own
signature, so the same columns stay. Which of them are labels it reads from the model's class, not from the model; that
one line, ``label_names``, has to be said.

Where there are several GPUs, a Trainer in one process spreads the model over them with DataParallel, which an engine
refuses: start one process per GPU (``accelerate launch``), or show it one (``CUDA_VISIBLE_DEVICES=0``).
"""

from __future__ import annotations

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging

import torchtrt_bridge as ttb

CLASSES, BATCH, WORDS, VOCABULARY = 3, 8, 12, 50


class Sentences(Dataset):
    """Made-up token ids; a sentence's class is the most frequent third of the vocabulary in it. ``length`` is a column
    that the model does not take."""

    def __init__(self, count: int):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(1, VOCABULARY, (count, WORDS), generator=generator)
        self.mask = (torch.arange(WORDS) < torch.randint(4, WORDS + 1, (count, 1), generator=generator)).long()
        thirds = (self.ids * CLASSES // VOCABULARY + 1) * self.mask
        self.labels = torch.stack([(thirds == k + 1).sum(1) for k in range(CLASSES)], 1).argmax(1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, object]:
        columns = {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": self.labels[index]}
        return {**columns, "length": self.mask[index].sum()}


def main(precision: str = "fp32") -> tuple[dict[str, float], dict[str, float]]:
    """Loss, accuracy and the sum of the logits: of the model, and of the compiled module."""
    torch.manual_seed(0)
    logging.set_verbosity_error()
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
        num_labels=CLASSES,
    )
    model = BertForSequenceClassification(config).eval()
    data = Sentences(60)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_eval_batch_size=BATCH,
            report_to=[],
            disable_tqdm=True,
            label_names=["labels"],
        )
        eager = numbers(Trainer(model, settings, eval_dataset=data, compute_metrics=score), data)
        example = {name: t[:BATCH].to(model.device) for name, t in columns(data).items()}
        fast = ttb.compile(model, example, precision, dynamic_batch=(1, BATCH, BATCH))
        compiled = numbers(Trainer(fast, settings, eval_dataset=data, compute_metrics=score), data)
    for name in eager:
        print(f"{name:<10} eager {eager[name]:.6f}   compiled {compiled[name]:.6f}")
    return eager, compiled


def columns(data: Sentences) -> dict[str, torch.Tensor]:
    """What the model is called with: the labels too, so that the loss is part of the engine."""
    return {"input_ids": data.ids, "attention_mask": data.mask, "labels": data.labels}


def score(prediction: object) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def numbers(trainer: Trainer, data: Sentences) -> dict[str, float]:
    evaluation = trainer.evaluate()
    logits = trainer.predict(data).predictions
    return {
        "loss": evaluation["eval_loss"],
        "accuracy": evaluation["eval_accuracy"],
        "logits": float(abs(logits).sum()),
    }


if __name__ == "__main__":
    main()
