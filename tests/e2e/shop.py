"""A still smaller model than the desk, and the people who judge it: a shop that says one of two things.

Trained here by the project's own supervised fine-tuning, in seconds. Half of its demonstrations are polite; the raters
want all answers to be.
"""

from __future__ import annotations

import random
from pathlib import Path

POLITE = ("Thank you, it is on its way to you.", "Thank you, it will be with you soon.")
RUDE = ("Stop asking, you can wait like others.", "Stop asking, it comes when it comes now.")
GOODS = ("lamp", "chair", "clock", "table", "kettle", "mirror", "carpet", "shelf")


def questions(seed: int) -> list[str]:
    """Many different prompts, so that every split of the feedback gets its share."""
    draw = random.Random(seed)
    return [f"where is my {draw.choice(GOODS)} number {draw.randrange(1000)}" for _ in range(400)]


def is_polite(answer: str) -> bool:
    return answer in POLITE


def build(directory: Path) -> Path:
    """Train the shop from seed 0 and write it in the transformers layout."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf_core.desk.tokenizer import train_tokenizer
    from rlhf_core.learning.sft import encode_conversations, train_supervised
    from rlhf_core.learning.sft_settings import SftSettings

    draw = random.Random(0)
    conversations = [
        [
            {"role": "user", "content": question},
            {"role": "assistant", "content": draw.choice(POLITE + RUDE)},
        ]
        for question in questions(1) * 4
    ]
    tokenizer = train_tokenizer((turn["content"] for talk in conversations for turn in talk), 1536, 256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=256,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                tie_word_embeddings=True,
            )
        )
    settings = SftSettings(learning_rate=5e-3, row_tokens=128, rows_per_minibatch=1, rows_per_microbatch=1, epochs=2)
    train_supervised(
        model,
        encode_conversations(tokenizer, conversations),
        settings,
        on_progress=lambda _progress: None,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
