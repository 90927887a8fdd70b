from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from rlhf_core.errors import ModelError
from rlhf_core.models.inspection import AttentionLayer
from rlhf_core.models.load import load_policy
from tests.rlhf_core.families import DECODER, FAMILIES, WINDOW, make_family

MakeTinyModel = Callable[..., Path]

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

WINDOWS = {
    "llama": [None, None, None],
    "mistral": [16, 16, 16],
    "mixtral": [16, 16, 16],
    "qwen2": [None, 16, 16],
    "qwen3": [None, None, 16],
    "gemma3": [16, None, 16, None],
    "phi3": [16, 16, 16],
    "smollm3": [None, 16, None, 16],
    "deepseek_v3": [None, None, None],
    "gpt2": [None, None, None],
    "opt": [None, None, None],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_policy_knows_what_each_layer_keeps_and_sees(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    layers = load_policy(make_family(make_tiny_model, tmp_path, FAMILIES[name]())).attention
    assert [layer.window for layer in layers] == WINDOWS[name]
    # Keys of 32 / 4 numbers for 2 of 4 heads, but for families that set the size of a head or have no key heads.
    # Latent attention has 16 + 8 numbers per key and 12 per value.
    sizes = {"qwen3": (16, 16), "gemma3": (16, 16), "deepseek_v3": (24, 12)}.get(name, (8, 8))
    kv_heads = 4 if name in ("gpt2", "opt", "deepseek_v3") else 2
    assert {(layer.kv_heads, layer.key_size, layer.value_size) for layer in layers} == {(kv_heads, *sizes)}


def test_the_bytes_of_a_token_are_those_of_all_layers() -> None:
    # 3 heads, keys of 64 numbers and values of 32.
    assert AttentionLayer(3, 64, 32, None).elements == 288


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            lambda: transformers.Gemma2Config(**DECODER, head_dim=16),
            r"\(gemma2\) caps its attention logits \(attn_logit_softcapping\)",
        ),
        (
            lambda: transformers.GptOssConfig(
                **DECODER, head_dim=8, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2
            ),
            "GptOssAttention uses s_aux in its attention",
        ),
        (
            lambda: transformers.Qwen3NextConfig(
                **{**DECODER, "num_hidden_layers": 4}, head_dim=8, shared_expert_intermediate_size=32, **EXPERTS
            ),
            r"\(qwen3_next\) has linear_attention layers",
        ),
        (
            lambda: transformers.MambaConfig(
                vocab_size=300, hidden_size=32, num_hidden_layers=2, eos_token_id=1, pad_token_id=0
            ),
            r"\(mamba\) has linear_attention layers",
        ),
        (
            lambda: transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, eos_token_id=1),
            "BloomForCausalLM does not let its attention be replaced",
        ),
        (
            lambda: transformers.Llama4TextConfig(
                **{**DECODER, "num_hidden_layers": 4},
                head_dim=8,
                attention_chunk_size=WINDOW,
                intermediate_size_mlp=64,
                num_local_experts=2,
            ),
            r"\(llama4_text\) has chunked_attention of 16 tokens: set the context to at most 16",
        ),
        (
            lambda: transformers.Qwen2MoeConfig(
                **DECODER,
                use_sliding_window=True,
                sliding_window=WINDOW,
                max_window_layers=3,
                shared_expert_intermediate_size=32,
                **EXPERTS,
            ),
            "layer 0 of Qwen2MoeForCausalLM sees 16 tokens by its configuration and all by its code",
        ),
        (
            lambda: transformers.FalconConfig(
                vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, eos_token_id=1
            ),
            r"\(falcon\) adds position biases to its attention \(alibi\)",
        ),
        (
            lambda: transformers.GPT2Config(
                vocab_size=300, n_embd=32, n_layer=2, n_head=4, reorder_and_upcast_attn=True
            ),
            r"\(gpt2\) computes its attention in another precision \(reorder_and_upcast_attn\)",
        ),
        (
            lambda: transformers.NemotronConfig(**DECODER),
            "layer 0 of NemotronForCausalLM does not attend through the engine",
        ),
    ],
)
def test_attention_that_the_slots_do_not_compute_is_refused_by_name(
    config: Callable[[], Any], sentence: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    directory = make_family(make_tiny_model, tmp_path, config())
    with pytest.raises(ModelError, match=sentence) as refused:
        load_policy(directory, max_context=64)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "reads its prompt with an encoder"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "looks at tokens that are still to come"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "attends to an encoder"),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {
                    "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
            "dynamic rotary scaling",
        ),
    ],
)
def test_a_configuration_alone_is_enough_to_refuse(
    values: dict[str, Any], sentence: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ModelError, match=sentence):
        load_policy(tmp_path, max_context=64)


def test_a_window_or_chunk_that_the_context_never_outgrows_is_no_obstacle(
    make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    config = transformers.Qwen2MoeConfig(
        **DECODER,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=3,
        shared_expert_intermediate_size=32,
        **EXPERTS,
    )
    directory = make_family(make_tiny_model, tmp_path, config)
    assert load_policy(directory, max_context=WINDOW).max_context == WINDOW
