"""Tiny random models of the families that people bring, each with the attention that sets its family apart.

Windows are shorter than the sequences of the tests, and every model has layers of each kind that its family knows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

MakeTinyModel = Callable[..., Path]

WINDOW = 16
"""Tokens that a windowed layer sees."""

_TOKENS: dict[str, Any] = {
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
DECODER: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**DECODER),
    "mistral": lambda: transformers.MistralConfig(**DECODER, sliding_window=WINDOW),
    "mixtral": lambda: transformers.MixtralConfig(
        **DECODER, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        **DECODER, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        **DECODER, head_dim=16, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**DECODER, "num_hidden_layers": 4, "tie_word_embeddings": True},
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        sliding_window_pattern=2,
    ),
    "phi3": lambda: transformers.Phi3Config(
        **DECODER,
        sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "smollm3": lambda: transformers.SmolLM3Config(
        **{**DECODER, "num_hidden_layers": 4},
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=WINDOW,
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**DECODER, "num_key_value_heads": 4},
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=2,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        **_TOKENS,
        n_embd=32,
        n_layer=3,
        n_head=4,
        initializer_range=0.3,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "opt": lambda: transformers.OPTConfig(
        **_TOKENS,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        init_std=0.3,
    ),
}
"""Name to configuration. The weights are drawn wide, so that greedy choices are never near ties."""

FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Those that the fused forward computes."""


def make_family(
    make_tiny_model: MakeTinyModel, directory: Path, config: Any, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """A random model of `config` in `directory`, with the tokenizer and the template of the tiny model."""
    make_tiny_model(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        _spread_norms(model)
    model.to(dtype).save_pretrained(directory)
    return directory


def _spread_norms(model: torch.nn.Module) -> None:
    """Norms start at 1 (or, in Gemma, at 0 for 1): drawn at random, one that is applied wrongly shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
