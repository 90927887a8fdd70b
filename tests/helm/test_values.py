"""The values: what is refused and in which words, that all are documented and in the schema, how settings pass."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from rlhf_core.settings import setting_names

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
OWNED = {
    "ATTUNE_DATA_DIR",
    "ATTUNE_HOST",
    "ATTUNE_API_PORT",
    "ATTUNE_UI_PORT",
    "ATTUNE_API_URL",
    "ATTUNE_REDIS_URL",
    "ATTUNE_REDIS_PORT",
    "ATTUNE_BROKER_URL",
    "ATTUNE_API_KEYS",
    "ATTUNE_API_KEY",
    "ATTUNE_MODERATOR_KEYS",
}
"""Settings that the chart gives itself."""

Render = Callable[..., dict[str, dict[str, Any]]]


def test_without_a_secret_it_says_what_to_set(helm: ModuleType, render: Render) -> None:
    with pytest.raises(helm.HelmRenderError) as raised:
        render({"existingSecret": ""})
    sentence = "Set existingSecret to the name of a Secret with the keys api-keys, api-key and redis-password."
    assert sentence in str(raised.value)


def test_without_the_bundled_store_it_wants_another(helm: ModuleType, render: Render) -> None:
    with pytest.raises(helm.HelmRenderError, match=r"Set redis\.existingSecret to the name of a Secret"):
        render({"redis": {"bundled": False}})


def test_two_stores_are_refused(helm: ModuleType, render: Render) -> None:
    with pytest.raises(helm.HelmRenderError, match=r"set redis\.bundled to false, or leave it empty"):
        render({"redis": {"existingSecret": "store"}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"unknown": 1}, "unknown"),
        ({"server": {"replicaCount": 2}}, "replicaCount"),
        ({"server": {"replicas": 0}}, "/server/replicas"),
        ({"beat": {"replicas": 2}}, "replicas"),
        ({"server": {"image": {"tag": "latest"}}}, "/server/image/tag"),
        ({"redis": {"image": {"tag": ""}}}, "/redis/image/tag"),
        ({"checkpoints": {"accessMode": "ReadOnlyMany"}}, "/checkpoints/accessMode"),
        ({"existingSecret": "Not A Name"}, "/existingSecret"),
        ({"settings": {"ATTUNE_SEED": True}}, "/settings/ATTUNE_SEED"),
        ({"settings": {"ATTUNE_NO_SUCH": "1"}}, "ATTUNE_NO_SUCH"),
        ({"settings": {"LOG_LEVEL": "debug"}}, "LOG_LEVEL"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(
    values: dict[str, Any], named: str, helm: ModuleType, render: Render
) -> None:
    with pytest.raises(helm.HelmValuesError, match=re.escape(named)):
        render(values)


@pytest.mark.parametrize("name", sorted(OWNED))
def test_a_setting_that_the_chart_owns_is_refused(name: str, helm: ModuleType, render: Render) -> None:
    with pytest.raises(helm.HelmValuesError, match=rf"'{name}' not allowed"):
        render({"settings": {name: "1"}})


def test_every_other_setting_may_be_given() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(setting_names()) >= OWNED
    assert set(schema["properties"]["settings"]["properties"]) == set(setting_names()) - OWNED


def test_settings_pass_unchanged_into_one_map(render: Render) -> None:
    given = {"ATTUNE_SEED": 1000000, "ATTUNE_PPO_LEARNING_RATE": 1e-7, "ATTUNE_GATE_WIN_RATE": 0.55}
    release = render({"settings": {**given, "ATTUNE_MODEL": 'a "quoted": name'}})
    data = release["settings-configmap.yaml"]["data"]
    assert data.pop("ATTUNE_MODEL") == 'a "quoted": name'
    assert data["ATTUNE_SEED"] == "1000000"
    assert {name: float(text) for name, text in data.items()} == given


def test_every_setting_can_be_rendered_at_once(render: Render) -> None:
    given = {name: "1" for name in setting_names() if name not in OWNED}
    assert render({"settings": given})["settings-configmap.yaml"]["data"] == given


def test_values_and_schema_have_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert sorted(_keys_of_values(values)) == sorted(_keys_of_schema(schema, schema))


FREE_FORM = {"settings", "global", "nodeSelector", "resources"}
"""Maps whose keys are the operator's."""


def _keys_of_values(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{path}/{key}"
        if isinstance(value, dict) and key not in FREE_FORM:
            yield from _keys_of_values(value, f"{path}/{key}")


def _keys_of_schema(node: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in node.get("properties", {}).items():
        found = root["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
        yield f"{path}/{key}"
        if key in FREE_FORM:
            continue
        if found.get("type") == "object":
            assert found["additionalProperties"] is False, f"{path}/{key}"
        yield from _keys_of_schema(found, root, f"{path}/{key}")


def test_every_value_is_documented_where_it_stands() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    undocumented = []
    for above, line in zip(["", *lines], lines, strict=False):
        # Deeper keys are parts of a documented map; a line that only opens a map has its documentation inside it.
        key = re.match(r"( {0,4})(\w+): \S", line)
        if key and not above.strip().startswith("#") and "requests:" not in line and "limits:" not in line:
            undocumented.append(line)
    assert undocumented == []


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["apiVersion"] == "v2"
    assert chart["appVersion"] == version
    assert chart["kubeVersion"] == ">=1.27.0-0"


def test_the_notes_name_services_that_exist(helm: ModuleType, render: Render) -> None:
    release = render({})
    notes = helm.Chart.load(CHART).render({"existingSecret": "keys"}, name="demo")["attune/templates/NOTES.txt"]
    named = re.findall(r"service/([\w-]+)", notes)
    services = {rendered["metadata"]["name"] for rendered in release.values() if rendered["kind"] == "Service"}
    assert len(named) == 2
    assert set(named) <= services
