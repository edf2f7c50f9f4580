"""Model shapes by class (`Qwen3Dense8BConfig()`), or of any model folder (`get_model_config_from_hf`)."""

from sft_trainer.model.config import FolderConfig, get_model_config_from_hf
from sftjob.presets import (
    ModelConfig,
    Qwen2Dense7BConfig,
    Qwen2DenseConfig,
    Qwen3Dense0P6BConfig,
    Qwen3Dense4BConfig,
    Qwen3Dense8BConfig,
    Qwen3DenseConfig,
)

__all__ = [
    "FolderConfig",
    "ModelConfig",
    "Qwen2Dense7BConfig",
    "Qwen2DenseConfig",
    "Qwen3Dense0P6BConfig",
    "Qwen3Dense4BConfig",
    "Qwen3Dense8BConfig",
    "Qwen3DenseConfig",
    "get_model_config_from_hf",
]
