"""Training a language model to design: supervised, by rejection sampling, by GRPO."""
