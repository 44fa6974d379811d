"""Designers of mechanisms: by rule, by search, by learning, and language models."""
