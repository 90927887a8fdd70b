import pytest

from rlhf_core.errors import SettingsError
from rlhf_core.settings import Secret, load_settings, setting_names


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = load_settings({"PATH": "/bin"})
    assert (settings.host, settings.api_port, settings.ui_port, settings.model) == (
        "127.0.0.1",
        8000,
        7860,
        "desk",
    )


def test_values_are_converted_to_their_type() -> None:
    settings = load_settings({"ATTUNE_API_PORT": "9000", "ATTUNE_PPO_KL_COEF": "0.1", "ATTUNE_MODEL": "/models/a"})
    assert settings.api_port == 9000
    assert settings.ppo_kl_coef == 0.1
    assert settings.model == "/models/a"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATTUNE_API_PORT", "0"),
        ("ATTUNE_API_PORT", "eighty"),
        ("ATTUNE_PPO_GAMMA", "1.5"),
        ("ATTUNE_REWARD_MIN_FEEDBACK", "0"),
        ("ATTUNE_PPO_LEARNING_RATE", "-1"),
    ],
)
def test_a_bad_value_is_named_with_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is '{value}'"):
        load_settings({name: value})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown setting ATTUNE_PROT"):
        load_settings({"ATTUNE_PROT": "1"})


def test_an_address_that_others_reach_needs_keys() -> None:
    with pytest.raises(SettingsError, match=r"ATTUNE_HOST is 0\.0\.0\.0"):
        load_settings({"ATTUNE_HOST": "0.0.0.0"})
    settings = load_settings({"ATTUNE_HOST": "0.0.0.0", "ATTUNE_API_KEYS": "one, two,"})
    assert settings.accepted_keys == {"one", "two"}
    assert settings.resolved_api_url == "http://127.0.0.1:8000"


def test_secrets_hide_in_repr() -> None:
    settings = load_settings({"ATTUNE_API_KEYS": "open sesame", "ATTUNE_REDIS_URL": "redis://:hush@h/0"})
    assert "sesame" not in repr(settings)
    assert "hush" not in repr(settings)
    assert settings.redis_url.reveal() == "redis://:hush@h/0"
    assert Secret("x").reveal() == "x"


def test_the_broker_is_the_records_server_unless_named(tmp_path: object) -> None:
    assert load_settings({"ATTUNE_REDIS_URL": "redis://a/0"}).resolved_broker_url == "redis://a/0"
    both = load_settings({"ATTUNE_REDIS_URL": "redis://a/0", "ATTUNE_BROKER_URL": "redis://b/0"})
    assert both.resolved_broker_url == "redis://b/0"


def test_names_carry_the_prefix_and_are_unique() -> None:
    names = setting_names()
    assert len(set(names)) == len(names)
    assert all(name.startswith("ATTUNE_") for name in names)
