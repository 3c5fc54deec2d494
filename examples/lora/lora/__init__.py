"""A Flower app that fine-tunes a causal language model with LoRA and Solon."""
