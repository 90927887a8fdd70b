"""Options are the settings structs: every field, its text, its bounds, its default."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from rlhf_core.cli import main
from rlhf_core.errors import SettingsError
from rlhf_core.learning.alternatives_settings import DPOSettings, KTOSettings, OnlineDPOSettings, RLOOSettings
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.runs.estimate import TRAININGS
from rlhf_core.runs.options import declare_settings, field_texts, read_settings


class Example(msgspec.Struct, frozen=True, kw_only=True):
    rate: Annotated[float, Meta(gt=0.0)] = 0.5
    """How fast, in 100 % of something."""
    target: float | None = None
    """Where to."""
    mode: Literal["slow", "fast"] = "slow"
    """Which way."""
    whiten: bool = False
    """Whether to."""
    pair: tuple[float, float] = (0.9, 0.95)
    """Two numbers."""
    names: tuple[str, ...] = ()
    """Any names."""
    weights: dict[str, float] = {}
    """A number per name."""
    seed: int = 0
    """Comes from --seed."""


def parse(*given: str) -> Example:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    declare_settings(parser, Example)
    return read_settings(parser.parse_args(given), Example)


def test_without_options_the_struct_keeps_its_defaults_and_takes_the_seed() -> None:
    assert parse() == Example(seed=7)


def test_every_kind_of_field_can_be_given() -> None:
    given = [
        "--rate",
        "2",
        "--target",
        "1.5",
        "--mode",
        "fast",
        "--whiten",
        "--pair",
        "0.1",
        "0.2",
        "--names",
        "a",
        "b",
        "--weights",
        "x=1",
        "y=0.5",
    ]
    expected = Example(
        rate=2.0,
        target=1.5,
        mode="fast",
        whiten=True,
        pair=(0.1, 0.2),
        names=("a", "b"),
        weights={"x": 1, "y": 0.5},
        seed=7,
    )
    assert parse(*given) == expected
    assert parse("--target", "none", "--no-whiten") == Example(seed=7)


@pytest.mark.parametrize(
    ("given", "said"), [(("--rate", "-1"), "--rate is -1"), (("--pair", "a", "1"), "--pair is a 1")]
)
def test_a_value_out_of_bounds_is_refused_by_option_and_value(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse(*given)


def test_the_docstring_under_a_field_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    declare_settings(parser, Example)
    text = " ".join(parser.format_help().split())
    assert "How fast, in 100 % of something. (default 0.5)" in text
    assert field_texts(SftSettings)["seed"] == "Orders the examples."


SETTINGS: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "sft": (SftSettings, LoraSettings),
    "reward": (RewardSettings, LoraSettings),
    "ppo": (PPOSettings, LoraSettings),
    "dpo": (DPOSettings, OnlineDPOSettings, LoraSettings),
    "kto": (KTOSettings, LoraSettings),
    "rloo": (RLOOSettings, LoraSettings),
}


@pytest.mark.parametrize("command", TRAININGS)
def test_every_setting_of_every_training_is_an_option_with_a_text(command: str) -> None:
    parser = argparse.ArgumentParser()
    import_module(f"rlhf_core.runs.{command}").declare(parser)
    helps = {flag: action.help for action in parser._actions for flag in action.option_strings}
    for each in SETTINGS[command]:
        for field in msgspec.structs.fields(each):
            flag = "--" + ("lora-" if each is LoraSettings else "") + field.name.replace("_", "-")
            assert helps.get(flag), f"{each.__name__}.{field.name} is no option of attune {command}, or has no text"


def test_a_wrong_setting_ends_the_command_with_a_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["sft", "--model", "desk", "--data", "x.jsonl", "--out", "x", "--row-tokens", "many"])
    assert status == 2
    assert "--row-tokens is many" in capsys.readouterr().err
