"""Which of the library's causal language models can be trained here, tried one by one: `python -m tests.architectures`.

Writes docs/architectures.md to standard output, or with names of model types after it, their rows alone. Of each type
transformers builds, fills and saves a tiny model; ours loads that folder, is probed and its memory estimated as at the
start of a run, and has to give the logits, the loss and the gradients that transformers' own attention gives on each
document alone. Each type is tried in a process of its own, so that none takes others with it.
"""

import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from sft_trainer.model import get_model_config_from_hf
from sft_trainer.model.build import build_model
from sft_trainer.model.probe import probe
from sft_trainer.packed import PackedBatch
from sft_trainer.train.memory import estimate_memory
from sftjob.failure import JobFailure
from sftjob.options import AdamWConfig, CELossConfig, FSDPConfig

SECONDS_A_TYPE = 600
"""Whatever else the machine does: one that takes longer stands still."""
MAX_PARAMETERS = 20_000_000
LENGTHS = [9, 13, 5]
VOCAB_SIZE = 96
# Below it lie the tokens that mean something: padding, an image.
FIRST_TEXT_TOKEN = 8
# Relative to the norm.
TOLERANCE = 1e-5

RESULTS = {
    "exact": "packed logits, loss and gradients are those of transformers' own attention on each document alone",
    "needs kernels": "it keeps documents apart with the named package only, which was not there: not tried further",
    "refused": "a job with such a model ends before its first step, with this message and exit code 64",
    "not tried": "no tiny model of it could be made here, or transformers' own forward does not run on text alone",
    "wrong": "accepted, and not equal: a fault of ours",
}
_LONGEST = 200

# Fields of configurations, by the value that makes a model tiny. Windows are shorter than the documents.
_SMALL: dict[int, str] = {
    96: "vocab_size type_vocab_size vocab_size_per_layer_input unpadded_vocab_size "
    "decoder_vocab_sizepronunciation_vocab_size shape_vocab_size ngram_vocab_size_base",
    64: "codebook_size audio_vocab_size max_position_embeddings n_positions n_ctx max_seq_len model_max_length "
    "max_target_positions context_length max_source_positions original_max_position_embeddings "
    "dense_intermediate_size shared_experts_intermediate_size",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_inner intermediate_size_mlp "
    "mlp_dim feed_forward_size",
    32: "hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim lru_width "
    "attention_hidden_size input_size input_embedding_size output_embedding_size out_hidden_size "
    "hidden_size_global output_channels ple_embed_dim projector_input_dim projector_output_dim "
    "vision_output_dim backbone_hidden_size pronunciation_embed_dim shape_embed_dim adapter_out_dim "
    "index_head_dim dim_model_base image_size",
    16: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
    "shared_intermediate_size expert_ffn_hidden_size kv_lora_rank q_lora_rank o_lora_rank qk_head_dim "
    "mamba_chunk_size chunk_size qk_dim hidden_size_per_layer_input laurel_rank router_hidden_size adapter_rank "
    "state_size ssm_state_size mamba_d_state gated_norm_rank loop_gate_rank hc_lowrank prompt_length "
    "num_mel_bins block_size rel_extent num_buckets num_position_embeddings",
    8: "mamba_head_dim mamba_d_head head_dim d_head global_head_dim swa_head_dim v_head_dim qk_nope_head_dim "
    "qk_rope_head_dim kv_channels rotary_dim attention_head_size linear_key_head_dim linear_value_head_dim "
    "linear_head_dim query_pre_attn_scalar patch_size mamba_num_heads mamba_n_heads n_mamba_heads "
    "time_step_rank mamba_dt_rank d_rel num_quantizers image_seq_length",
    6: "sliding_window sliding_window_size attention_chunk_size attention_window_size window_size local_attention "
    "local_attention_window_len",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
    "conf_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts "
    "linear_num_value_heads linear_num_heads index_topk o_groups zero_expert_num",
    2: "num_key_value_heads n_head_kv num_kv_heads swa_num_key_value_heads num_global_key_value_heads "
    "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts linear_num_key_heads "
    "index_n_heads encoder_layers num_encoder_layers depth num_blocks num_codebooks conf_num_hidden_layers "
    "mamba_n_groups n_groups mamba_ngroups split_ngram_parts heads_per_ngram num_query_groups",
    1: "n_group topk_group num_expert_group num_limited_groups first_k_dense_replace num_dense_layers "
    "n_shared_experts num_shared_experts moe_num_shared_experts",
}
SMALL = {name: value for value, names in _SMALL.items() for name in names.split()}
LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"}
# One entry a layer; a model is made deep enough to have each kind that the full one has.
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")
DEPTHS = (2, 3, 4, 5, 6, 8)
SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}

# What the rules above leave in disagreement with itself.
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_ZAMBA = {"attention_hidden_size": 64, "attention_head_dim": 16}
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {kind: _ROPE for kind in ("sliding_attention", "full_attention")},
    },
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10_000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 8},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 5},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": _ROPE},
    "hunyuan_v1_moe": {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": _ROPE},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": 8, "rope_parameters": _ROPE},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layer_types": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4} | _ZAMBA,
    "zamba2": {"layer_types": ["mamba", "hybrid"], "mamba_headdim": 8, "hybrid_layer_ids": [1]} | _ZAMBA,
    "zaya": {"num_experts_per_tok": 1},
}


@dataclass(frozen=True)
class Row:
    model_type: str
    result: str
    """A key of `RESULTS`."""
    why: str = ""

    def __str__(self) -> str:
        why = " ".join(self.why.replace("|", "/").split())
        why = why if len(why) <= _LONGEST else f"{why[:_LONGEST]} ..."
        return f"| `{self.model_type}` | {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.model_type]} | {self.result} | {why} |"


_HEAD = """# Which models can be trained

Every causal language model of transformers {version}, {types} types, each as a tiny random model on a CPU; written by
`make architectures`. The Trainer consults no such list: at the start of a run it asks the model itself, by changing one
document of a pack and comparing another, and by comparing its loss with that of the model's own logits.

Softcapped scores (Gemma 2) and sinks (gpt-oss) are exact everywhere. On a GPU FlexAttention computes them; on a CPU no
fused kernel does, and every score of a document is in memory at once. Attention dropout is refused in training; set it
to 0 in config.json, where it is `attention_dropout`, `attn_pdrop` (GPT-2) or `attention_probs_dropout_prob` (BERT).
"""


def tiny_config(model_type: str) -> PreTrainedConfig:
    full = CONFIG_MAPPING[model_type]()
    for depth in DEPTHS:
        settings = _small(full.to_dict(), depth=depth) | _EXCEPTIONS.get(model_type, {})
        config = CONFIG_MAPPING[model_type](**settings)
        if _kinds(config) == _kinds(full):
            return config
    return config


def _small(fields: dict[str, Any], *, depth: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and name.endswith("config"):
            settings[name] = _small(value, depth=depth)
            if "model_type" in value:
                settings[name]["model_type"] = value["model_type"]
        elif name == "is_decoder":
            settings[name] = True
        elif name == "sliding_window":
            # Where the default has none, published models may have one.
            settings[name] = SMALL[name]
        elif value is None or isinstance(value, (bool, str, list, dict)):
            continue
        elif name in LAYERS:
            settings[name] = depth
        elif name in SMALL:
            settings[name] = SMALL[name]
        elif name in SPECIAL_TOKENS:
            settings[name] = SPECIAL_TOKENS[name]
        elif name.endswith(("_token_id", "_token_index")):
            settings[name] = 4
        elif "drop" in name:
            settings[name] = type(value)(0)
    if "kv_lora_rank" in settings:
        # Latent attention has a key for each query.
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    return settings


def _kinds(config: PreTrainedConfig) -> set[str]:
    text = config.get_text_config(decoder=True)
    return {str(kind) for name in KINDS for kind in getattr(text, name, None) or []}


def try_type(model_type: str, folder: Path) -> Row:
    torch.manual_seed(7)
    try:
        config = tiny_config(model_type)
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(config, attn_implementation="eager").num_parameters()
        if parameters > MAX_PARAMETERS:
            return Row(model_type, "not tried", f"a tiny one still has {parameters:,} parameters")
        _save_random_model(config, folder)
        oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        oracle.eval()
        texts = _documents(seed=3)
        with torch.no_grad():
            oracle(input_ids=texts[0][None], use_cache=False)
    # Whatever a class of the library raises on a configuration that it was not written for.
    except Exception as error:
        return Row(model_type, "not tried", _line(error))
    try:
        model = build_model(
            get_model_config_from_hf(folder), load_from=str(folder), loss_cfg=CELossConfig(chunk_size=7),
            fsdp_cfg=FSDPConfig(), precision="fp32", device=torch.device("cpu"), mesh=None, seed=1,
        )  # fmt: skip
        probe(model, vocab_size=model.get_input_embeddings().weight.shape[0])
        estimate_memory(
            model, pack_tokens=sum(LENGTHS), precision="fp32", loss_cfg=CELossConfig(), fsdp_cfg=FSDPConfig(),
            optim_cfg=AdamWConfig(),
        )  # fmt: skip
    except JobFailure as failure:
        return _refusal(model_type, failure.message)
    except Exception as error:
        return Row(model_type, "wrong", f"fails without a sentence: {_line(error)}")
    differing = _compared(model.eval(), oracle, texts)
    return Row(model_type, "wrong", ", ".join(differing)) if differing else Row(model_type, "exact")


def _refusal(model_type: str, message: str) -> Row:
    if kernels := re.search(r"without `(\w+)`\. Install", message):
        return Row(model_type, "needs kernels", kernels[1])
    message = re.sub(r"^model: (\S+ can't be trained (here|on packs): )?", "", message).removesuffix(
        "; use another model"
    )
    # Figures differ from one machine to the next.
    message = re.sub(r"the loss is \S+ where that of .*", "the loss is not that of the model's own logits", message)
    return Row(model_type, "refused", message)


def _compared(model: torch.nn.Module, oracle: PreTrainedModel, texts: list[torch.Tensor]) -> list[str]:
    """What differs, and by how much; nothing, for a model that is trained right."""
    alone = [oracle(input_ids=text[None], use_cache=False).logits[0] for text in texts]
    labels = [torch.cat([text[1:], torch.tensor([-100])]) for text in texts]
    expected = F.cross_entropy(torch.cat(alone), torch.cat(labels), ignore_index=-100, reduction="sum")
    expected.backward()
    batch = _pack(texts, labels)
    with torch.no_grad():
        logits = model(batch, output="logits")[0]
        perturbed = model(_pack([_documents(seed=4)[0], *texts[1:]], labels), output="logits")[0]
    loss = model(batch)
    loss.backward()
    theirs = {name: parameter.grad for name, parameter in oracle.named_parameters() if parameter.grad is not None}
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    differences = {
        "logits": _difference(logits, torch.cat(alone)),
        "later documents after a change": _difference(perturbed[LENGTHS[0] :], logits[LENGTHS[0] :]),
        "loss": _difference(loss, expected),
        "gradients": _difference(_flat(ours, theirs), _flat(theirs, theirs)) if ours.keys() >= theirs.keys() else 1.0,
    }
    # NaN is close to nothing.
    return [f"{name} by {value:.0e}" for name, value in differences.items() if not value <= TOLERANCE]


def _save_random_model(config: PreTrainedConfig, folder: Path) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases, norms and sinks too: those that start at 0 or 1 would hide that they were left out.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)


def _documents(*, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_TEXT_TOKEN, VOCAB_SIZE, (length,), generator=generator) for length in LENGTHS]


def _pack(texts: list[torch.Tensor], labels: list[torch.Tensor]) -> PackedBatch:
    return PackedBatch(
        input_ids=torch.cat(texts)[None],
        position_ids=torch.cat([torch.arange(len(text)) for text in texts])[None],
        labels=torch.cat(labels)[None],
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32),
        trained_rows=(torch.cat(labels) != -100).nonzero()[:, 0],
    )


def _flat(gradients: dict[str, torch.Tensor], names: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in names])


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def rows(model_types: list[str], *, processes: int) -> list[Row]:
    """In the order asked for. A type whose process dies or takes too long gets a row that says so."""
    # Forked: torch and transformers take longer to import than a type to try.
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(model_types))
    running: dict[Connection, tuple[str, Any, float]] = {}
    found: dict[str, Row] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            model_type = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(model_type, sender))
            process.start()
            sender.close()
            running[receiver] = (model_type, process, time.monotonic() + SECONDS_A_TYPE)
        ready = wait(list(running), timeout=1)
        for receiver, (model_type, process, deadline) in list(running.items()):
            if receiver in ready:
                try:
                    found[model_type] = Row(**receiver.recv())
                except EOFError:
                    process.join()
                    found[model_type] = Row(model_type, "not tried", f"its process ended with {process.exitcode}")
            elif time.monotonic() > deadline:
                found[model_type] = Row(model_type, "not tried", f"took longer than {SECONDS_A_TYPE} s")
            else:
                continue
            process.kill()
            process.join()
            receiver.close()
            del running[receiver]
    return [found[model_type] for model_type in model_types]


def _child(model_type: str, sender: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sender.send(vars(try_type(model_type, Path(folder))))


def main(model_types: list[str]) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    table = rows(model_types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), processes=len(os.sched_getaffinity(0)))
    if not model_types:
        counts = Counter(row.result for row in table)
        print(_HEAD.format(version=transformers.__version__, types=len(table)))
        for result, meaning in RESULTS.items():
            print(f"- **{result}** ({counts[result]}): {meaning}.")
        print("\n| `model_type` | Class | Result | Why |\n|---|---|---|---|")
    for row in table:
        print(row)


if __name__ == "__main__":
    main(sys.argv[1:])
