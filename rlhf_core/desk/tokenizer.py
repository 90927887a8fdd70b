"""The desk model's tokenizer: byte-level BPE, up to three digits a token, and the chat template it is trained on.

A word must have the same tokens wherever it stands, or copying a name from the start of a message would mean respelling
it. So the template writes one space after each role token, `<|user|> Hello<|end|><|assistant|> Hi<|end|>`, and every
word has a space before it. An answer's first token therefore carries that space; the decoder drops one leading space,
so decoding an answer gives clean text, and rendering that text in a later turn gives the very same tokens again.
"""

import json
import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (PAD, END, *ROLE_TOKENS)

# Up to three digits are one token, so an account number is two: a copy takes fewer steps, and each looks for a rarer
# token. One digit at a time, the first 4 of 448392 is followed by a 4 and the second by an 8.
NUMBER_CHUNK = r"\p{N}{1,3}"
NUMBER_TOKENS = 100 + 1000

# Text that spells a special token is broken up: a message must not be able to end itself and speak as somebody else.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role: ' ~ message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|> ' ~ (message['content'] | trim | replace('<|', '< |')) ~ '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Learn `vocab_size` tokens from message texts, numbers included; `max_tokens` is only reported as its length.

    Needs room for the 256 bytes, the special tokens and the numbers.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(NUMBER_CHUNK), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUMBER_TOKENS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" " + re.sub(r"\d", "", text) for text in texts), trainer)
    tokenizer = _with_numbers(tokenizer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLE_TOKENS),
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _with_numbers(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with a token for every two and every three digits, whichever two of them merge first."""
    state = json.loads(tokenizer.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    pairs = [f"{number:02d}" for number in range(100)]
    triples = [f"{number:03d}" for number in range(1000)]
    for token in pairs + triples:
        vocab[token] = len(vocab)
    merges += [[pair[0], pair[1]] for pair in pairs]
    merges += [[triple[:2], triple[2]] for triple in triples] + [[triple[0], triple[1:]] for triple in triples]
    return Tokenizer.from_str(json.dumps(state))
