"""Rendering the chart with Helm's own library, for about everything that an operator may choose."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

CHART = Path(__file__).resolve().parents[2] / "helm"
ABSENT = "the chart's tests need requirements-chart.lock (make chart), which has wheels for Linux x86-64 only"

Object = dict[str, Any]
Release = dict[str, Object]
"""Name of a template, such as server-service.yaml, to the one object that it rendered."""
Render = Callable[..., Release]
"""(values, name="demo") -> Release. `existingSecret` is filled in where the values do not have it."""

VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "own redis": {
        "redis": {"bundled": False, "existingSecret": "store", "brokerUrlKey": "broker-url"},
        "networkPolicy": {"redisPorts": [6380]},
    },
    "own claim": {"checkpoints": {"existingClaim": "weights"}},
    "custom": {
        "settings": {"ATTUNE_MODEL": "desk", "ATTUNE_SEED": 1000000, "ATTUNE_PPO_LEARNING_RATE": 1e-7},
        "imagePullSecrets": ["registry"],
        "server": {
            "image": {"repository": "registry.example:5000/attune-server", "tag": "0.1.0-cuda"},
            "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}, "requests": {"memory": "24Gi"}},
            "nodeSelector": {"accelerator": "yes"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "checkpoints": {"storageClass": "nfs", "accessMode": "ReadWriteOnce"},
        "redis": {"storageClass": "fast"},
        "networkPolicy": {
            "uiFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
            "serverFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"protocol": "TCP", "port": 443}]}],
        },
        "global": {"shared": "by a parent chart"},
    },
    "open network": {"networkPolicy": {"enabled": False}},
    "several": {"server": {"replicas": 3}, "worker": {"replicas": 2}, "ui": {"replicas": 2}},
}


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as Kubernetes reads it: a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice among {keys}, {node.start_mark}"
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


@pytest.fixture(scope="session")
def helm() -> ModuleType:
    """Helm's library. Where it is absent these tests are skipped, and fail in continuous integration."""
    try:
        import helm_python
        import kubernetes_validate  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        if os.environ.get("ATTUNE_CI") == "1":
            pytest.fail(ABSENT)
        pytest.skip(ABSENT)
    return helm_python


@pytest.fixture(scope="session")
def render(helm: ModuleType) -> Render:
    chart = helm.Chart.load(CHART)

    def rendered(values: dict[str, Any], name: str = "demo") -> Release:
        texts = chart.render({"existingSecret": "keys", **values}, name=name, namespace="prod")
        return {
            path.rpartition("/")[2]: yaml.load(text, _UniqueKeys)
            for path, text in texts.items()
            if path.endswith(".yaml") and text.strip()
        }

    return rendered


@pytest.fixture(scope="session", params=sorted(VALUE_SETS))
def chosen(request: pytest.FixtureRequest) -> str:
    """Name of a set of values."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def release(chosen: str, render: Render) -> Release:
    return render(VALUE_SETS[chosen])


@pytest.fixture(scope="session")
def workloads(release: Release) -> Release:
    """Component, such as server, to its Deployment or StatefulSet."""
    kinds = ("Deployment", "StatefulSet")
    return {name.rpartition("-")[0]: template for name, template in release.items() if template["kind"] in kinds}
