"""Model shapes by class, overridable field by field: `Qwen3Dense8BConfig(num_hidden_layers=16)`.

Field names are those of the model's `config.json`. Figures are from the published configurations; where releases of one
size differ, from the instruction-tuned one.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from sftjob.base import Declared

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class ModelConfig(Declared):
    """A decoder-only transformer. `hf_config()` gives what its `config.json` would say."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    max_position_embeddings: Count
    rms_norm_eps: Positive = 1e-6
    rope_theta: Positive
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if problems := counts_that_do_not_fit(self.model_dump()):
            raise ValueError("\n".join(problems))
        return self

    def hf_config(self) -> dict[str, Any]:
        """As in the `config.json` of a model folder, `model_type` and `architectures` included."""
        fields = self.model_dump()
        theta = fields.pop("rope_theta")
        scaling = fields.pop("rope_scaling", None) or {"rope_type": "default"}
        return fields | {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "rope_parameters": scaling | {"rope_theta": theta},
        }


def counts_that_do_not_fit(fields: Mapping[str, Any], *, spelled: Callable[[str], str] = str) -> list[str]:
    """What no layer could compute: a line for each, `<field>: <what>; <remedy>`, with names as `spelled` has them."""
    heads, key_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    problems = []
    if heads % key_heads:
        problems.append(
            f"{spelled('num_key_value_heads')}: {key_heads} does not divide the {heads} of "
            f"{spelled('num_attention_heads')}; change one of them"
        )
    if "num_experts" in fields and fields["num_experts_per_tok"] > fields["num_experts"]:
        problems.append(
            f"{spelled('num_experts_per_tok')}: {fields['num_experts_per_tok']} is more than the "
            f"{fields['num_experts']} of {spelled('num_experts')}; change one of them"
        )
    return problems


class Qwen2DenseConfig(ModelConfig):
    """Qwen2 and Qwen2.5."""

    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"

    rope_theta: Positive = 1e6
    max_position_embeddings: Count = 32768


class Qwen3DenseConfig(ModelConfig):
    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"

    vocab_size: Count = 151936
    head_dim: Count = 128
    rope_theta: Positive = 1e6
    max_position_embeddings: Count = 40960


class Qwen3MoEConfig(ModelConfig):
    """`intermediate_size` counts in layers without experts, of which the published models have none."""

    model_type: ClassVar[str] = "qwen3_moe"
    architecture: ClassVar[str] = "Qwen3MoeForCausalLM"

    vocab_size: Count = 151936
    head_dim: Count = 128
    rope_theta: Positive = 1e6
    max_position_embeddings: Count = 40960
    num_experts: Count = 128
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count
    decoder_sparse_step: Count = 1
    norm_topk_prob: bool = True


class Llama3DenseConfig(ModelConfig):
    """Llama 3, whose successors 3.1 to 3.3 differ in `rope_scaling`."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"

    vocab_size: Count = 128256
    rms_norm_eps: Positive = 1e-5
    rope_theta: Positive = 5e5
    rope_scaling: dict[str, float | int | str] | None = None
    max_position_embeddings: Count = 8192


class MistralDenseConfig(ModelConfig):
    model_type: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"

    head_dim: Count = 128
    sliding_window: Count | None = None
    rms_norm_eps: Positive = 1e-5
    rope_theta: Positive = 1e6
    max_position_embeddings: Count = 32768


class Qwen2Dense0P5BConfig(Qwen2DenseConfig):
    hidden_size: Count = 896
    intermediate_size: Count = 4864
    num_hidden_layers: Count = 24
    num_attention_heads: Count = 14
    num_key_value_heads: Count = 2
    vocab_size: Count = 151936
    tie_word_embeddings: bool = True


class Qwen2Dense1P5BConfig(Qwen2DenseConfig):
    hidden_size: Count = 1536
    intermediate_size: Count = 8960
    num_hidden_layers: Count = 28
    num_attention_heads: Count = 12
    num_key_value_heads: Count = 2
    vocab_size: Count = 151936
    tie_word_embeddings: bool = True


class Qwen2Dense3BConfig(Qwen2DenseConfig):
    """Qwen2.5 alone has this size."""

    hidden_size: Count = 2048
    intermediate_size: Count = 11008
    num_hidden_layers: Count = 36
    num_attention_heads: Count = 16
    num_key_value_heads: Count = 2
    vocab_size: Count = 151936
    tie_word_embeddings: bool = True


class Qwen2Dense7BConfig(Qwen2DenseConfig):
    hidden_size: Count = 3584
    intermediate_size: Count = 18944
    num_hidden_layers: Count = 28
    num_attention_heads: Count = 28
    num_key_value_heads: Count = 4
    vocab_size: Count = 152064


class Qwen2Dense14BConfig(Qwen2DenseConfig):
    """Qwen2.5 alone has this size; its base model has `rms_norm_eps=1e-5`."""

    hidden_size: Count = 5120
    intermediate_size: Count = 13824
    num_hidden_layers: Count = 48
    num_attention_heads: Count = 40
    num_key_value_heads: Count = 8
    vocab_size: Count = 152064


class Qwen2Dense32BConfig(Qwen2DenseConfig):
    """Qwen2.5 alone has this size; its base model has `rms_norm_eps=1e-5`."""

    hidden_size: Count = 5120
    intermediate_size: Count = 27648
    num_hidden_layers: Count = 64
    num_attention_heads: Count = 40
    num_key_value_heads: Count = 8
    vocab_size: Count = 152064


class Qwen2Dense72BConfig(Qwen2DenseConfig):
    """The base models have `rms_norm_eps=1e-5`."""

    hidden_size: Count = 8192
    intermediate_size: Count = 29568
    num_hidden_layers: Count = 80
    num_attention_heads: Count = 64
    num_key_value_heads: Count = 8
    vocab_size: Count = 152064


class Qwen3Dense0P6BConfig(Qwen3DenseConfig):
    hidden_size: Count = 1024
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 28
    num_attention_heads: Count = 16
    num_key_value_heads: Count = 8
    tie_word_embeddings: bool = True


class Qwen3Dense1P7BConfig(Qwen3DenseConfig):
    hidden_size: Count = 2048
    intermediate_size: Count = 6144
    num_hidden_layers: Count = 28
    num_attention_heads: Count = 16
    num_key_value_heads: Count = 8
    tie_word_embeddings: bool = True


class Qwen3Dense4BConfig(Qwen3DenseConfig):
    hidden_size: Count = 2560
    intermediate_size: Count = 9728
    num_hidden_layers: Count = 36
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    tie_word_embeddings: bool = True


class Qwen3Dense8BConfig(Qwen3DenseConfig):
    hidden_size: Count = 4096
    intermediate_size: Count = 12288
    num_hidden_layers: Count = 36
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8


class Qwen3Dense14BConfig(Qwen3DenseConfig):
    hidden_size: Count = 5120
    intermediate_size: Count = 17408
    num_hidden_layers: Count = 40
    num_attention_heads: Count = 40
    num_key_value_heads: Count = 8


class Qwen3Dense32BConfig(Qwen3DenseConfig):
    hidden_size: Count = 5120
    intermediate_size: Count = 25600
    num_hidden_layers: Count = 64
    num_attention_heads: Count = 64
    num_key_value_heads: Count = 8


class Qwen3MoE30BA3Config(Qwen3MoEConfig):
    hidden_size: Count = 2048
    intermediate_size: Count = 6144
    num_hidden_layers: Count = 48
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 4
    moe_intermediate_size: Count = 768


class Qwen3MoE235BA22Config(Qwen3MoEConfig):
    hidden_size: Count = 4096
    intermediate_size: Count = 12288
    num_hidden_layers: Count = 94
    num_attention_heads: Count = 64
    num_key_value_heads: Count = 4
    moe_intermediate_size: Count = 1536


class Llama3Dense8BConfig(Llama3DenseConfig):
    hidden_size: Count = 4096
    intermediate_size: Count = 14336
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8


class Llama3Dense70BConfig(Llama3DenseConfig):
    hidden_size: Count = 8192
    intermediate_size: Count = 28672
    num_hidden_layers: Count = 80
    num_attention_heads: Count = 64
    num_key_value_heads: Count = 8


class Llama3P1Dense8BConfig(Llama3Dense8BConfig):
    max_position_embeddings: Count = 131072
    rope_scaling: dict[str, float | int | str] | None = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


class Llama3P1Dense70BConfig(Llama3Dense70BConfig):
    """Llama 3.3 too."""

    max_position_embeddings: Count = 131072
    rope_scaling: dict[str, float | int | str] | None = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


class Llama3P1Dense405BConfig(Llama3DenseConfig):
    hidden_size: Count = 16384
    intermediate_size: Count = 53248
    num_hidden_layers: Count = 126
    num_attention_heads: Count = 128
    num_key_value_heads: Count = 8
    max_position_embeddings: Count = 131072
    rope_scaling: dict[str, float | int | str] | None = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


class Llama3P2Dense1BConfig(Llama3DenseConfig):
    hidden_size: Count = 2048
    intermediate_size: Count = 8192
    num_hidden_layers: Count = 16
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    max_position_embeddings: Count = 131072
    rope_scaling: dict[str, float | int | str] | None = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    tie_word_embeddings: bool = True


class Llama3P2Dense3BConfig(Llama3DenseConfig):
    hidden_size: Count = 3072
    intermediate_size: Count = 8192
    num_hidden_layers: Count = 28
    num_attention_heads: Count = 24
    num_key_value_heads: Count = 8
    max_position_embeddings: Count = 131072
    rope_scaling: dict[str, float | int | str] | None = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    tie_word_embeddings: bool = True


class MistralDense7BConfig(MistralDenseConfig):
    """Mistral 7B v0.3."""

    hidden_size: Count = 4096
    intermediate_size: Count = 14336
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    vocab_size: Count = 32768


class MistralDense12BConfig(MistralDenseConfig):
    """Mistral Nemo."""

    hidden_size: Count = 5120
    intermediate_size: Count = 14336
    num_hidden_layers: Count = 40
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    vocab_size: Count = 131072
    max_position_embeddings: Count = 131072


class MistralDense24BConfig(MistralDenseConfig):
    """Mistral Small 3."""

    hidden_size: Count = 5120
    intermediate_size: Count = 32768
    num_hidden_layers: Count = 40
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    vocab_size: Count = 131072
    rope_theta: Positive = 1e8


class MistralDense123BConfig(MistralDenseConfig):
    """Mistral Large 2."""

    hidden_size: Count = 12288
    intermediate_size: Count = 28672
    num_hidden_layers: Count = 88
    num_attention_heads: Count = 96
    num_key_value_heads: Count = 8
    vocab_size: Count = 32768
    max_position_embeddings: Count = 131072


PRESETS: dict[str, type[ModelConfig]] = {
    preset.__name__.removesuffix("Config"): preset
    for preset in (
        Qwen2Dense0P5BConfig,
        Qwen2Dense1P5BConfig,
        Qwen2Dense3BConfig,
        Qwen2Dense7BConfig,
        Qwen2Dense14BConfig,
        Qwen2Dense32BConfig,
        Qwen2Dense72BConfig,
        Qwen3Dense0P6BConfig,
        Qwen3Dense1P7BConfig,
        Qwen3Dense4BConfig,
        Qwen3Dense8BConfig,
        Qwen3Dense14BConfig,
        Qwen3Dense32BConfig,
        Qwen3MoE30BA3Config,
        Qwen3MoE235BA22Config,
        Llama3Dense8BConfig,
        Llama3Dense70BConfig,
        Llama3P1Dense8BConfig,
        Llama3P1Dense70BConfig,
        Llama3P1Dense405BConfig,
        Llama3P2Dense1BConfig,
        Llama3P2Dense3BConfig,
        MistralDense7BConfig,
        MistralDense12BConfig,
        MistralDense24BConfig,
        MistralDense123BConfig,
    )
}
"""By the name that `spec.model.preset` takes."""
