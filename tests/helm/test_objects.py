"""Every object of every set of values: valid for Kubernetes, well named, selecting what exists, only where wanted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHART = Path(__file__).resolve().parents[2] / "helm"
MINORS = ("1.31", "1.34", "1.37")
TEMPLATES = {path.name for path in (CHART / "templates").glob("*.yaml")}
POLICIES = {name for name in TEMPLATES if name.endswith("networkpolicy.yaml")}
MUST_NOT_RENDER: dict[str, set[str]] = {
    "own redis": {"redis-statefulset.yaml", "redis-service.yaml", "redis-networkpolicy.yaml"},
    "own claim": {"checkpoints-pvc.yaml"},
    "open network": POLICIES,
}
KINDS = {
    "deployment": "Deployment",
    "statefulset": "StatefulSet",
    "service": "Service",
    "pvc": "PersistentVolumeClaim",
    "pdb": "PodDisruptionBudget",
    "networkpolicy": "NetworkPolicy",
    "serviceaccount": "ServiceAccount",
    "configmap": "ConfigMap",
}

Object = dict[str, Any]
Release = dict[str, Object]
Render = Callable[..., Release]


@pytest.fixture(scope="module")
def validate(helm: ModuleType) -> Iterator[Callable[[Object, str], None]]:
    """Validation against the strict schemas, each read from disk once and each object checked once."""
    import kubernetes_validate  # type: ignore[import-untyped]

    patch = pytest.MonkeyPatch()
    read = cache(kubernetes_validate.utils.schema_contents)
    patch.setattr(kubernetes_validate.utils, "schema_contents", read)

    @cache
    def checked(text: str, minor: str) -> None:
        used = kubernetes_validate.validate(json.loads(text), minor, strict=True)
        assert used == minor, f"no schemas of Kubernetes {minor}, only of {used}"

    yield lambda rendered, minor: checked(json.dumps(rendered, sort_keys=True), minor)
    patch.undo()


@pytest.mark.parametrize("minor", MINORS)
def test_every_object_is_valid_for_kubernetes(
    release: Release, minor: str, validate: Callable[[Object, str], None]
) -> None:
    assert len(release) >= 10
    for rendered in release.values():
        validate(rendered, minor)


def test_the_validation_refuses_a_misspelt_field(render: Render, validate: Callable[[Object, str], None]) -> None:
    import kubernetes_validate

    broken = copy.deepcopy(render({})["server-service.yaml"])
    broken["spec"]["sesionAffinity"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken, MINORS[0])


@pytest.mark.parametrize("version", ["v1.27.0", "v1.37.0"])
def test_helm_finds_nothing_to_warn_of(helm: ModuleType, version: str) -> None:
    report = helm.lint(CHART, {"existingSecret": "keys"}, strict=True, kube_version=version)
    worse_than_information = [message for message in report["messages"] if message["severity"] > 1]
    assert report["total_charts_linted"] == 1
    assert (report["errors"], worse_than_information) == ([], [])


def test_each_template_renders_exactly_where_it_is_wanted(chosen: str, release: Release) -> None:
    assert set(release) == TEMPLATES - MUST_NOT_RENDER.get(chosen, set())


def test_a_file_is_named_for_its_component_and_kind(release: Release) -> None:
    for name, rendered in release.items():
        component, _, kind = name.removesuffix(".yaml").rpartition("-")
        assert rendered["kind"] == KINDS[kind], name
        if component:
            assert rendered["metadata"]["labels"]["app.kubernetes.io/component"] == component


RELEASE_NAMES = ["demo", "attune", "attune-prod", "7.staging.eu", "x" * 53]


@pytest.mark.parametrize("name", RELEASE_NAMES)
def test_names_fit_every_kind_for_every_release_name(name: str, render: Render) -> None:
    for template, rendered in render({}, name=name).items():
        given = rendered["metadata"]["name"]
        # 52, because a StatefulSet's pods get a label of its name, a dash and ten digits: 52 + 11 = 63.
        assert len(given) <= 52, (template, given)
        assert given[0].isalpha(), (template, given)
        assert given.replace("-", "").isalnum(), (template, given)
        assert given == given.lower(), (template, given)
        labels = rendered["metadata"]["labels"]
        assert all(len(value) <= 63 for value in labels.values()), (template, labels)


def test_long_release_names_that_differ_at_their_end_stay_different(render: Render) -> None:
    one, other = (render({}, name="x" * 52 + end)["server-service.yaml"] for end in "ab")
    assert one["metadata"]["name"] != other["metadata"]["name"]


def test_no_two_objects_share_kind_and_name(release: Release) -> None:
    keys = [(rendered["kind"], rendered["metadata"]["name"]) for rendered in release.values()]
    assert len(keys) == len(set(keys))
    assert {rendered["metadata"]["namespace"] for rendered in release.values()} == {"prod"}


def test_selectors_match_the_labels_of_their_own_pods_alone(workloads: Release) -> None:
    for component, workload in workloads.items():
        selector = workload["spec"]["selector"]["matchLabels"].items()
        matched = [
            name
            for name, other in workloads.items()
            if selector <= other["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert matched == [component]


def test_each_service_and_budget_selects_one_workload_and_a_port_it_has(release: Release, workloads: Release) -> None:
    services = {name: rendered for name, rendered in release.items() if rendered["kind"] == "Service"}
    assert len(services) >= 2
    for name, service in services.items():
        pod = workloads[name.partition("-")[0]]["spec"]["template"]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], name
    budget = release["server-pdb.yaml"]["spec"]
    assert budget["selector"] == workloads["server"]["spec"]["selector"]
    assert budget["maxUnavailable"] == 1


def test_every_name_that_a_pod_refers_to_is_rendered_or_given(
    chosen: str, release: Release, workloads: Release
) -> None:
    claims = {
        rendered["metadata"]["name"] for rendered in release.values() if rendered["kind"] == "PersistentVolumeClaim"
    }
    wanted = {"weights"} if chosen == "own claim" else claims
    accounts = release["serviceaccount.yaml"]["metadata"]["name"]
    settings = release["settings-configmap.yaml"]["metadata"]["name"]
    assert len(wanted) == 1
    for component, workload in workloads.items():
        pod = workload["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == accounts
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used == (wanted if component in ("server", "worker") else set()), component
        given = set(volumes) | {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        container = pod["containers"][0]
        assert {mount["name"] for mount in container["volumeMounts"]} == given
        for source in container.get("envFrom", []):
            assert source["configMapRef"]["name"] == settings


def test_an_uninstall_keeps_the_checkpoints(render: Render) -> None:
    claim = render({})["checkpoints-pvc.yaml"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
