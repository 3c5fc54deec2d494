"""A Flower app: LoRA fine-tuning of a causal language model with Solon."""
