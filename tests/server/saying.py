"""A model that says one text and no other, so that a test can write down every byte of its answer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

SAID = "né 日🙂 ok"
"""One, two, three and four bytes to the character; the tokenizer gives each byte of the longer ones a token."""
ASSISTANT, END = 4, 1
LOUD = 10.0


def make_saying_model_in(directory: Path, tiny: Path) -> Path:
    """A copy of the tiny model that answers SAID, whatever it is asked, and ends.

    Its layers add nothing, the last token alone picks the next one: token i of the chain has a hidden direction of its
    own, and only token i+1 listens to that. The logit is 10 * sqrt(32), about 57, so sampling says the same.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    chain = [ASSISTANT, *tokenizer.encode(SAID), END]
    assert len(set(chain)) == len(chain) <= model.config.hidden_size
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for place, (token, following) in enumerate(pairwise(chain)):
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[following, place] = LOUD
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
