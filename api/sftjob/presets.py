"""Model shapes by class, overridable field by field: `Qwen3Dense8BConfig(num_hidden_layers=16)`.

Field names are those of the model's `config.json`. Figures are from the published configurations.
"""

from typing import Any, ClassVar

from pydantic import Field

from sftjob.base import Declared


class ModelConfig(Declared):
    """A decoder-only transformer. `hf_config()` gives what its `config.json` would say."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(gt=0)
    tie_word_embeddings: bool = False

    def hf_config(self) -> dict[str, Any]:
        """As in the `config.json` of a model folder, `model_type` and `architectures` included."""
        fields = self.model_dump()
        theta = fields.pop("rope_theta")
        return fields | {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }


class Qwen2DenseConfig(ModelConfig):
    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"

    rope_theta: float = Field(default=1e6, gt=0)
    max_position_embeddings: int = Field(default=32768, ge=1)


class Qwen2Dense7BConfig(Qwen2DenseConfig):
    vocab_size: int = Field(default=152064, ge=1)
    hidden_size: int = Field(default=3584, ge=1)
    intermediate_size: int = Field(default=18944, ge=1)
    num_hidden_layers: int = Field(default=28, ge=1)
    num_attention_heads: int = Field(default=28, ge=1)
    num_key_value_heads: int = Field(default=4, ge=1)


class Qwen3DenseConfig(ModelConfig):
    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"

    vocab_size: int = Field(default=151936, ge=1)
    head_dim: int = Field(default=128, ge=1)
    rope_theta: float = Field(default=1e6, gt=0)
    max_position_embeddings: int = Field(default=40960, ge=1)


class Qwen3Dense0P6BConfig(Qwen3DenseConfig):
    hidden_size: int = Field(default=1024, ge=1)
    intermediate_size: int = Field(default=3072, ge=1)
    num_hidden_layers: int = Field(default=28, ge=1)
    num_attention_heads: int = Field(default=16, ge=1)
    num_key_value_heads: int = Field(default=8, ge=1)
    tie_word_embeddings: bool = True


class Qwen3Dense4BConfig(Qwen3DenseConfig):
    hidden_size: int = Field(default=2560, ge=1)
    intermediate_size: int = Field(default=9728, ge=1)
    num_hidden_layers: int = Field(default=36, ge=1)
    num_attention_heads: int = Field(default=32, ge=1)
    num_key_value_heads: int = Field(default=8, ge=1)
    tie_word_embeddings: bool = True


class Qwen3Dense8BConfig(Qwen3DenseConfig):
    hidden_size: int = Field(default=4096, ge=1)
    intermediate_size: int = Field(default=12288, ge=1)
    num_hidden_layers: int = Field(default=36, ge=1)
    num_attention_heads: int = Field(default=32, ge=1)
    num_key_value_heads: int = Field(default=8, ge=1)


PRESETS: dict[str, type[ModelConfig]] = {
    "Qwen2Dense7B": Qwen2Dense7BConfig,
    "Qwen3Dense0P6B": Qwen3Dense0P6BConfig,
    "Qwen3Dense4B": Qwen3Dense4BConfig,
    "Qwen3Dense8B": Qwen3Dense8BConfig,
}
"""By the name that `spec.model.preset` takes."""
