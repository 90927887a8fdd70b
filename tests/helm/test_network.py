"""Who may talk to whom, by evaluating the rendered policies as Kubernetes defines them: allowed where no policy selects
the pod, else only what some rule allows, and at both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

Object = dict[str, Any]
Release = dict[str, Object]
Render = Callable[..., Release]
Direction = Literal["Ingress", "Egress"]

PODS = ("server", "worker", "beat", "ui", "redis")
PORTS = {"server": 8000, "ui": 7860, "redis": 6379, "worker": 1, "beat": 1}
NEEDED = {("ui", "server"), ("server", "redis"), ("worker", "redis"), ("beat", "redis")}
STRANGER = {"app": "stranger"}


def labels(release: Release, component: str) -> dict[str, str]:
    kind = "statefulset" if component == "redis" else "deployment"
    found: dict[str, str] = release[f"{component}-{kind}.yaml"]["spec"]["template"]["metadata"]["labels"]
    return found


def selects(selector: Object, pod: dict[str, str]) -> bool:
    return bool(selector["matchLabels"].items() <= pod.items())


def matches(rule: Object, peer: dict[str, str], peers_key: str, port: int, names: dict[str, int]) -> bool:
    peers, ports = rule.get(peers_key), rule.get("ports")
    peer_fits = not peers or any("podSelector" in p and selects(p["podSelector"], peer) for p in peers)
    return peer_fits and (not ports or port in [names.get(p["port"], p["port"]) for p in ports])


def allows(release: Release, direction: Direction, pod: dict[str, str], peer: dict[str, str], port: int) -> bool:
    policies = [r["spec"] for r in release.values() if r["kind"] == "NetworkPolicy"]
    applying = [p for p in policies if selects(p["podSelector"], pod) and direction in p["policyTypes"]]
    rules = [rule for policy in applying for rule in policy.get(direction.lower(), [])]
    key = "from" if direction == "Ingress" else "to"
    names = {"http": port, "redis": port}
    return not applying or any(matches(rule, peer, key, port, names) for rule in rules)


def reaches(release: Release, source: dict[str, str], target: dict[str, str], port: int) -> bool:
    return allows(release, "Egress", source, target, port) and allows(release, "Ingress", target, source, port)


def test_exactly_the_needed_ways_are_open(render: Render) -> None:
    release = render({})
    open_ways = {
        (source, target)
        for source in PODS
        for target in PODS
        if source != target and reaches(release, labels(release, source), labels(release, target), PORTS[target])
    }
    assert open_ways == NEEDED


def test_needed_ways_are_open_on_their_port_alone(render: Render) -> None:
    release = render({})
    assert not reaches(release, labels(release, "server"), labels(release, "redis"), 22)


@pytest.mark.parametrize("component", PODS)
def test_strangers_are_kept_out_and_only_names_may_be_looked_up(component: str, render: Render) -> None:
    release = render({})
    pod = labels(release, component)
    assert not allows(release, "Ingress", pod, STRANGER, PORTS[component])
    assert not allows(release, "Egress", pod, STRANGER, 443)
    assert allows(release, "Egress", pod, STRANGER, 53)


def test_peers_are_let_in_where_the_values_name_them(render: Render) -> None:
    peer = [{"podSelector": {"matchLabels": STRANGER}}]
    release = render({"networkPolicy": {"uiFrom": peer, "serverFrom": peer}})
    for component, allowed in (("ui", True), ("server", True), ("worker", False), ("redis", False)):
        assert allows(release, "Ingress", labels(release, component), STRANGER, PORTS[component]) is allowed
    assert reaches(release, labels(release, "ui"), labels(release, "server"), 8000)


def test_more_egress_is_for_the_model_holders_alone(render: Render) -> None:
    release = render({"networkPolicy": {"extraEgress": [{"ports": [{"protocol": "TCP", "port": 443}]}]}})
    for component in PODS:
        allowed = component in ("server", "worker")
        assert allows(release, "Egress", labels(release, component), STRANGER, 443) is allowed


def test_an_own_store_is_reached_on_its_port(render: Render) -> None:
    values = {
        "redis": {"bundled": False, "existingSecret": "store"},
        "networkPolicy": {"redisPorts": [6380]},
    }
    release = render(values)
    for component, allowed in (("server", True), ("worker", True), ("beat", True), ("ui", False)):
        assert allows(release, "Egress", labels(release, component), STRANGER, 6380) is allowed


def test_without_policies_everything_is_open(render: Render) -> None:
    release = render({"networkPolicy": {"enabled": False}})
    assert reaches(release, labels(release, "ui"), labels(release, "redis"), 6379)
