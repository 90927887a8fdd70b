"""The shipped desk model: it is the one its manifest describes, made from this code's recipe and grammar, and it
is good enough.

Quality bars are those of the manifest's 300 prompts, loosened here for the noise of fewer prompts.
"""

from collections.abc import Iterator
from itertools import islice

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.checkpoints import file_sha256
from rlhf_core.desk.build import answer_prompts
from rlhf_core.desk.demonstrations import demonstrations, held_out_prompts
from rlhf_core.desk.grammar import grammar_hash
from rlhf_core.desk.quality import DeskQuality, judge_answers
from rlhf_core.desk.recipe import CHECKPOINT, DATA_HEAD, MANIFEST_NAME, SHIPPED, DeskManifest, canonical_sha256

LARGEST_BYTES = 16 * 2**20
PROMPTS = 60


@pytest.fixture(scope="module")
def manifest() -> DeskManifest:
    return msgspec.json.decode((CHECKPOINT / MANIFEST_NAME).read_bytes(), type=DeskManifest)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    # Matrices this small gain nothing from a second thread, and two of them stall each other on a busy machine.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_shipped_model_was_made_by_this_recipe(manifest: DeskManifest) -> None:
    assert manifest.recipe == SHIPPED
    assert manifest.recipe_hash == SHIPPED.hash


def test_the_shipped_model_was_taught_this_grammar(manifest: DeskManifest) -> None:
    assert manifest.grammar_hash == grammar_hash()


def test_the_demonstrations_still_come_out_as_they_did(manifest: DeskManifest) -> None:
    drawn = demonstrations(SHIPPED.demonstrations, SHIPPED.seed)
    assert canonical_sha256(islice(drawn, DATA_HEAD)) == manifest.data_head_sha256


def test_the_weights_are_the_ones_the_manifest_describes(manifest: DeskManifest) -> None:
    assert file_sha256(CHECKPOINT / "model.safetensors") == manifest.weights_sha256


def test_the_directory_is_small_enough_to_carry() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= LARGEST_BYTES


def test_the_manifest_s_own_numbers_reach_the_bars(manifest: DeskManifest) -> None:
    quality = msgspec.convert(manifest.quality, DeskQuality)
    assert quality.n == SHIPPED.evaluation_prompts
    assert quality.end_rate >= 0.97
    assert quality.fit_rate >= 0.95
    assert quality.copy_rate >= 0.90
    assert 0.35 <= quality.good_share <= 0.60
    assert quality.worst_repeat <= 2


@pytest.mark.usefixtures("one_thread")
def test_the_shipped_model_answers_held_out_customers_well() -> None:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)
    prompts = held_out_prompts(PROMPTS, seed=SHIPPED.seed + 1)
    answers = answer_prompts(model, tokenizer, prompts, seed=1)
    quality = judge_answers(prompts, answers.texts, answers.ended)
    assert quality.end_rate >= 0.95
    assert quality.fit_rate >= 0.90
    assert quality.copy_rate >= 0.85
    # A share of 0.45 among 60 answers has a standard deviation of 0.064: two of them below and above the bars
    assert 0.25 <= quality.good_share <= 0.70
    assert quality.worst_repeat <= 2
