"""Starts a fresh Llama with heads that copy, so that a short training need not discover copying by itself.

Repeating a made-up name needs two heads to find each other (Olsson et al. 2022, In-context Learning and Induction
Heads): one that tells each token what stood before it, and one that looks for an earlier place with the same past
and says what came next there. From random weights that takes most of a run on two processor cores. Here layer 0
begins with heads that look one and two tokens back, and layer 1 with heads that match on both, so a digit that
occurs twice is told apart by the digit before it. Everything is an ordinary weight of an ordinary Llama with
biases, and training may change all of it.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

LOOK_BACK = 8.0
"""Size of the query and key biases of the look-back heads: large enough that one position takes all attention."""
FAST = 0.05
"""Radians per token above which a rotary frequency helps to tell neighbouring positions apart."""
SLOW = 0.012
"""Radians per token below which a rotary frequency hardly turns over a conversation, so content can be matched in
it."""
WRITTEN = 0.09
"""How strongly a look-back head writes, against an embedding of length one."""
MATCHED = 3.0
"""Size of the matching heads' queries and keys."""
COPIED = 0.25
"""How strongly the matching heads write. Gentle: training decides when to copy, and a loud copier drowns all
other words."""


@torch.no_grad()
def plant_copying_heads(model: LlamaForCausalLM) -> None:
    """Overwrite the embeddings and four heads of `model`, drawing directions from torch's current random state.

    Needs `attention_bias`, as many key heads as query heads, and at least two layers and two heads;
    AssertionError otherwise.
    """
    config = model.config
    assert config.attention_bias, "look-back heads need biases"
    assert config.num_hidden_layers >= 2, "look-back heads need a layer after them"
    assert config.num_key_value_heads == config.num_attention_heads >= 2, "two heads with keys of their own"
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=width**-0.5)
    turns = _turns(float(config.rope_parameters["rope_theta"]), size)
    read = _orthonormal(width)[:, :size]
    written = _orthonormal(width)
    copied = _orthonormal(width)
    for head in (0, 1):
        span = slice(head * size, (head + 1) * size)
        _look_back(model, span, turns, read, written[:, span], distance=head + 1)
    for head in (0, 1):
        span = slice(head * size, (head + 1) * size)
        _match(model, span, turns, read, (written[:, :size], written[:, size : 2 * size]), copied[:, span])


def _turns(theta: float, size: int) -> Tensor:
    """Radians per token of the rotary pairs [size / 2]; pair f is dimensions f and f + size / 2 of a head."""
    half = size // 2
    return theta ** (-torch.arange(half) / half)


def _orthonormal(width: int) -> Tensor:
    """A random basis [width, width], one direction a column."""
    basis: Tensor = torch.linalg.qr(torch.randn(width, width))[0]
    return basis


def _look_back(
    model: LlamaForCausalLM, span: slice, turns: Tensor, read: Tensor, written: Tensor, distance: int
) -> None:
    """A head of layer 0 that attends `distance` tokens back and writes the part of that embedding that `read` sees.

    Score between positions p and s is the sum of cos((p - s - distance) turn) over the fast pairs: greatest at p
    - s = distance.
    """
    attention = model.model.layers[0].self_attn
    bias = LOOK_BACK * (turns > FAST)
    attention.q_proj.bias[span] = torch.cat([bias, torch.zeros_like(bias)])
    attention.k_proj.bias[span] = torch.cat([bias * torch.cos(distance * turns), bias * torch.sin(distance * turns)])
    attention.v_proj.weight[span] = read.T
    attention.o_proj.weight[:, span] = WRITTEN * written


def _match(
    model: LlamaForCausalLM,
    span: slice,
    turns: Tensor,
    read: Tensor,
    written: tuple[Tensor, Tensor],
    copied: Tensor,
) -> None:
    """A head of layer 1 whose query is this token and the one before, and whose key is the two before the other place.

    It lives in the slow pairs, every other one for each of the two tokens, and repeats what stands at the other place.
    """
    attention = model.model.layers[1].self_attn
    slow = torch.nonzero(turns < SLOW)[:, 0]
    slow = torch.cat([slow, slow + len(turns)])
    query, key = torch.zeros_like(attention.q_proj.weight[span]), torch.zeros_like(attention.k_proj.weight[span])
    for dimensions, asked, offered in ((slow[0::2], read, written[0]), (slow[1::2], written[0], written[1])):
        chosen = torch.randperm(read.shape[1])[: len(dimensions)]
        query[dimensions] = MATCHED * asked[:, chosen].T
        key[dimensions] = MATCHED * offered[:, chosen].T
    attention.q_proj.weight[span] = query
    attention.k_proj.weight[span] = key
    attention.v_proj.weight[span] = copied.T
    attention.o_proj.weight[:, span] = COPIED * copied
