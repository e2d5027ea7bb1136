"""Ready-made models, each with its configuration and tokenizer."""

from .language_models import create_gpt2, create_llama, create_smollm2

__all__ = ["create_gpt2", "create_llama", "create_smollm2"]
