"""Ready-made models: language and vision-language models of transformers; an MLP, a GRU, a transformer of our own."""

from .gru import (
    GRU_COMPONENTS,
    GRUConfig,
    GRUForClassification,
    GRULMHeadModel,
    GRUModel,
    GRUOutput,
    create_gru,
    create_gru_classifier,
    create_gru_lm,
    gru_path,
)
from .language_models import (
    create_blip,
    create_blip_itm,
    create_gpt2,
    create_gpt2_lm,
    create_gpt_neo,
    create_gpt_neox,
    create_llama,
    create_smollm2,
)
from .mlp_classifier import MLP_COMPONENTS, MLPConfig, MLPForClassification, MLPOutput, create_mlp_classifier, mlp_path
from .transformer import (
    TransformerConfig,
    TransformerLMHeadModel,
    TransformerOutput,
    create_induction_lm,
    create_transformer_lm,
)

__all__ = [
    "GRU_COMPONENTS",
    "MLP_COMPONENTS",
    "GRUConfig",
    "GRUForClassification",
    "GRULMHeadModel",
    "GRUModel",
    "GRUOutput",
    "MLPConfig",
    "MLPForClassification",
    "MLPOutput",
    "TransformerConfig",
    "TransformerLMHeadModel",
    "TransformerOutput",
    "create_blip",
    "create_blip_itm",
    "create_gpt2",
    "create_gpt2_lm",
    "create_gpt_neo",
    "create_gpt_neox",
    "create_gru",
    "create_gru_classifier",
    "create_gru_lm",
    "create_induction_lm",
    "create_llama",
    "create_mlp_classifier",
    "create_smollm2",
    "create_transformer_lm",
    "gru_path",
    "mlp_path",
]
