"""The bundled store: the very arguments of its container, run for real, and what replaces it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rlhf_core.errors import StoreUnavailableError
from rlhf_core.store.connection import connect, wait_until_ready
from rlhf_core.store.embedded import find_binary

Object = dict[str, Any]
Release = dict[str, Object]
Render = Callable[..., Release]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_the_container_arguments_start_a_server_that_keeps_what_it_acknowledges(render: Render, tmp_path: Path) -> None:
    stateful = render({})["redis-statefulset.yaml"]["spec"]
    (container,) = stateful["template"]["spec"]["containers"]
    port = free_port()
    stand_ins = {"$(REDIS_PASSWORD)": "pass-word", "/data": str(tmp_path), "6379": str(port)}
    arguments = [stand_ins.get(argument, argument) for argument in container["args"]]
    process = subprocess.Popen([find_binary(), *arguments, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL)
    try:
        client = connect(f"redis://:pass-word@127.0.0.1:{port}/0")
        wait_until_ready(client, 10)
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "maxmemory": str(768 * 1024 * 1024),
        }
        found = client.config_get(*wanted)
        assert {_text(key): _text(value) for key, value in found.items()} == wanted
        client.set("kept", "yes")
        client.close()
        with pytest.raises(StoreUnavailableError):
            wait_until_ready(connect(f"redis://127.0.0.1:{port}/0"), 0.5)
    finally:
        process.terminate()
        process.wait(10)
    assert any((tmp_path / "appendonlydir").iterdir())


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def test_its_data_has_a_volume_of_its_own(render: Render) -> None:
    stateful = render({"redis": {"size": "50Gi", "storageClass": "fast"}})["redis-statefulset.yaml"]["spec"]
    (claim,) = stateful["volumeClaimTemplates"]
    (container,) = stateful["template"]["spec"]["containers"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in container["volumeMounts"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"
    assert claim["spec"]["storageClassName"] == "fast"
    # Fields of a claim template cannot be changed later, so nothing in it may depend on the chart's version.
    assert "helm.sh/chart" not in claim["metadata"]["labels"]


def test_the_url_leads_to_its_service(render: Render) -> None:
    release = render({})
    environ = release["server-deployment.yaml"]["spec"]["template"]["spec"]["containers"][0]["env"]
    names = [entry["name"] for entry in environ]
    assert names.index("REDIS_PASSWORD") < names.index("ATTUNE_REDIS_URL")
    url = urlsplit(environ[names.index("ATTUNE_REDIS_URL")]["value"].replace("$(REDIS_PASSWORD)", "pass-word"))
    service = release["redis-service.yaml"]
    assert url.hostname == service["metadata"]["name"]
    assert url.port == service["spec"]["ports"][0]["port"]
    assert service["spec"]["clusterIP"] == "None"
    assert release["redis-statefulset.yaml"]["spec"]["serviceName"] == service["metadata"]["name"]


def test_with_an_own_server_no_password_is_asked_for(render: Render) -> None:
    release = render({"redis": {"bundled": False, "existingSecret": "store", "urlKey": "address"}})
    for component in ("server", "worker", "beat"):
        environ = release[f"{component}-deployment.yaml"]["spec"]["template"]["spec"]["containers"][0]["env"]
        by_name = {entry["name"]: entry for entry in environ}
        assert by_name["ATTUNE_REDIS_URL"]["valueFrom"] == {"secretKeyRef": {"name": "store", "key": "address"}}
        assert not {"REDIS_PASSWORD", "ATTUNE_BROKER_URL"} & set(by_name)
