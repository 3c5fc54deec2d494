"""Your existing code: a language model with LoRA adapters, texts and a Trainer. Nothing in this file uses Solon."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import UserConfig
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

LENGTH = 32  # tokens of an example
TESTED = 64  # examples to test with
WORDS = (
    ("The", "A", "One", "No"),
    ("old", "young", "red", "small", "quiet", "clever"),
    ("fox", "king", "baker", "sailor", "crow", "child"),
    ("sees", "finds", "paints", "forgets", "sells", "wants"),
    ("the", "a", "one", "no"),
    ("big", "lost", "green", "broken", "round", "golden"),
    ("house.", "boat.", "clock.", "bridge.", "apple.", "song."),
)


def made_up_text() -> str:
    """Return 2,000 sentences of randomly drawn words."""
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.randint(len(words), (2000,), generator=generator).tolist() for words in WORDS]
    return " ".join(words[index] for sentence in zip(*chosen) for words, index in zip(WORDS, sentence))  # noqa: B905


@cache
def load_examples(model: str, text: str) -> tuple[list[dict[str, list[int]]], Tensor]:
    """Return examples to train with, and token ids to test with, (TESTED, LENGTH) int64.

    Parameters
    ----------
    model : str
        A model's name on the hub, or its folder, whose tokenizer is used. If "", tokens are letters.
    text : str
        A text file. If "", the text is generated.
    """
    content = Path(text).read_text() if text else made_up_text()
    ids = AutoTokenizer.from_pretrained(model)(content)["input_ids"] if model else list(content.encode("ascii"))
    examples = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)]
    train = [{"input_ids": example, "labels": example} for example in examples[TESTED:]]
    return train, torch.tensor(examples[:TESTED])


def load_model(run: UserConfig) -> Any:
    """Return the frozen language model with trainable adapters."""
    if run["model"]:
        base = AutoModelForCausalLM.from_pretrained(str(run["model"]))
    else:  # a small model with random weights
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                initializer_range=0.2,  # so that there is something to adapt
            )
        )
    lora = LoraConfig(r=int(run["rank"]), target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def make_trainer(run: UserConfig) -> Trainer:
    """Return the Trainer of a run with these settings."""
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=int(run["batch-size"]),
        learning_rate=float(run["learning-rate"]),
        lr_scheduler_type="cosine",
        report_to="none",
    )
    train, _ = load_examples(str(run["model"]), str(run["text"]))
    return Trainer(model=load_model(run), args=arguments, train_dataset=train)


@torch.inference_mode()
def test(model: Any, ids: Tensor) -> float:
    """Return the fraction of tokens that the model predicts, from 0 to 1."""
    likeliest = model.eval()(input_ids=ids.to(model.device)).logits.argmax(-1).cpu()
    return float((likeliest[:, :-1] == ids[:, 1:]).float().mean())
