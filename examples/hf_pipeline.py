"""Hugging Face ``pipeline``: a compiled model in the place of the model.

    python examples/hf_pipeline.py

The pipeline reads the model's ``config``, ``device`` and signature; the compiled module has them. The tokenizer and the
model are made here, so that nothing is downloaded; ``from_pretrained`` ones go the same way.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline
from transformers.utils import logging

import torchtrt_bridge as ttb

BATCH, WORDS = 4, 32
SENTENCES = [
    "the engine starts at once",
    "a cold engine starts slowly in the cold and the wind of a long night",
    "the night is long",
    "wind and rain",
    "the rain starts",
    "slowly the long rain ends",
    "at night the wind ends",
]


def main(precision: str = "fp32") -> tuple[dict[str, float], dict[str, float]]:
    """Each sentence's score: by the model, and by the compiled module. The labels are part of the names."""
    torch.manual_seed(0)
    logging.set_verbosity(logging.CRITICAL)  # a pipeline lists all classes that it knows where it meets another one
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.3,
        id2label={0: "calm", 1: "rough", 2: "neither"},
        label2id={"calm": 0, "rough": 1, "neither": 2},
    )
    model = BertForSequenceClassification(config).eval().to(device)

    example = dict(tokenizer(SENTENCES[:BATCH], padding=True, return_tensors="pt").to(device))
    batch, words = ttb.Dim(1, BATCH, BATCH, name="batch"), ttb.Dim(2, 16, WORDS, name="words")
    shapes = {name: {0: batch, 1: words} for name in example}
    fast = ttb.compile(model, example, precision, dynamic_shapes=shapes)

    again = ttb.TRTModule()  # elsewhere: its configuration comes from the file as well
    again.load_state_dict(fast.state_dict())
    eager, compiled = classify(model, tokenizer, device), classify(fast, tokenizer, device)
    eager.update({f"{name}, reloaded": score for name, score in eager.items()})
    compiled.update({f"{name}, reloaded": score for name, score in classify(again, tokenizer, device).items()})
    for name in eager:
        print(f"{name:<88} eager {eager[name]:.6f}   compiled {compiled.get(name, float('nan')):.6f}")
    return eager, compiled


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows the words of SENTENCES."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for line in SENTENCES for word in line.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


def classify(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> dict[str, float]:
    """Sentences in batches, one left over."""
    classifier = pipeline("text-classification", model=model, tokenizer=tokenizer, device=device)
    answers = classifier(SENTENCES, batch_size=BATCH - 1)
    return {f"{line}: {answer['label']}": answer["score"] for line, answer in zip(SENTENCES, answers)}


if __name__ == "__main__":
    main()
