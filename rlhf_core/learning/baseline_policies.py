"""What people would try before any of this: show the policy good answers in its prompt, or fine-tune it on them.

Both see the same thumbs as every other algorithm, and use the thumbs up alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlhf_core.errors import TrainingError
from rlhf_core.learning.conversations import SftExample
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.sft import SftResult, train_supervised
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import RatedResponse, TokenIds


def train_on_upvoted(
    trainee: Trainable,
    ratings: Sequence[RatedResponse],
    settings: SftSettings,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
) -> SftResult:
    """Supervised fine-tuning of `trainee` on the answers that got a thumb up, ordered by `settings.seed`.

    Raises TrainingError when there are none.
    """
    examples = [
        SftExample(
            (*each.prompt_token_ids, *each.token_ids),
            (False,) * len(each.prompt_token_ids) + (True,) * len(each.token_ids),
        )
        for each in upvoted(ratings)
    ]
    result = train_supervised(trainee.model, examples, settings, hooks=hooks, devices=devices)
    trainee.refresh()
    return result


def few_shot_prompts(
    policy: LoadedPolicy,
    ratings: Sequence[RatedResponse],
    prompts: Sequence[TokenIds],
    shots: int,
    room: int,
    seed: int,
) -> list[TokenIds]:
    """Each of `prompts` behind up to `shots` earlier exchanges that got a thumb up, drawn for each prompt anew.

    Exchanges are put in as turns of one conversation, a leading begin token only once. As many as leave `room` tokens
    for the answer within the policy's context are used. Raises TrainingError when nothing has a thumb up.
    """
    good, draw = upvoted(ratings), random.Random(seed)
    begin = policy.tokenizer.bos_token_id
    return [
        _behind(draw.sample(good, min(shots, len(good))), each, policy.max_context - room, begin) for each in prompts
    ]


def upvoted(ratings: Sequence[RatedResponse]) -> list[RatedResponse]:
    """The ratings that are a thumb up. Raises TrainingError when none is."""
    good = [each for each in ratings if each.value == "up"]
    if not good:
        raise TrainingError(f"of {len(ratings)} thumbs none is up, so there is no good answer to show")
    return good


def _behind(exchanges: Sequence[RatedResponse], prompt: TokenIds, most: int, begin: int | None) -> TokenIds:
    """The prompt with what fits of the exchanges before it, at most `most` tokens in all."""
    whole = prompt
    for each in exchanges:
        turn = (*each.prompt_token_ids, *each.token_ids)
        rest = whole[1:] if whole[0] == begin else whole
        if len(turn) + len(rest) <= most:
            whole = (*turn, *rest)
    return whole
