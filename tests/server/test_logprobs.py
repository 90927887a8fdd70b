"""Both shapes of logprobs, on hand-made outputs of a real tokenizer."""

from __future__ import annotations

from rlhf_core.engine.sequence import GenerationRequest, Sequence, StepOutput
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import Sampling
from server.logprobs import ChatLogprobs, TextLogprobs
from server.tokens import Speller

SEQUENCE = Sequence(GenerationRequest("r", (1,), Sampling()), 8)


def outputs(token_ids: list[int], top: tuple[tuple[int, float], ...] = ()) -> list[StepOutput]:
    """The n-th token has the logprob -n/4."""
    return [StepOutput(SEQUENCE, token, -place / 4, "", False, top) for place, token in enumerate(token_ids)]


def test_chat_logprobs_carry_bytes_and_the_alternatives(tiny_policy: LoadedPolicy) -> None:
    tokenizer = tiny_policy.tokenizer
    euro = tokenizer.encode("€")
    (letter,) = tokenizer.encode("z")
    written = ChatLogprobs(Speller(tokenizer)).write(outputs(euro, ((letter, -0.5), (1, float("-inf")))))
    # The euro sign is E2 82 AC, that is 226 130 172.
    assert [entry["bytes"] for entry in written["content"]] == [[226], [130], [172]]
    assert [entry["token"] for entry in written["content"]] == ["\\xe2", "\\x82", "\\xac"]
    assert [entry["logprob"] for entry in written["content"]] == [0.0, -0.25, -0.5]
    assert written["content"][0]["top_logprobs"] == [
        {"token": "z", "logprob": -0.5, "bytes": [122]},
        {"token": "<|end|>", "logprob": -9999.0, "bytes": []},
    ]


def test_text_logprobs_are_columns_and_offsets_count_whole_characters(tiny_policy: LoadedPolicy) -> None:
    tokenizer = tiny_policy.tokenizer
    writer = TextLogprobs(Speller(tokenizer))
    (letter,) = tokenizer.encode("z")
    written = writer.write(outputs([letter, *tokenizer.encode("é"), letter], ((letter, -1.5),)))
    assert written["tokens"] == ["z", "\\xc3", "\\xa9", "z"]
    # z is character 0; both bytes of é belong to character 1, which is there only after the second; z is character 2.
    assert written["text_offset"] == [0, 1, 1, 2]
    assert written["token_logprobs"] == [0.0, -0.25, -0.5, -0.75]
    assert written["top_logprobs"][:2] == [{"z": -1.5}, {"z": -1.5, "\\xc3": -0.25}]
    later = writer.write(outputs([letter]))
    assert later["text_offset"] == [3]
    assert later["top_logprobs"] == [{"z": 0.0}]
