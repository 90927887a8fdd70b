"""Every pod: hardened, probed, bounded, started as `make up` starts it, and with an environment that Attune accepts."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_core.settings import Settings, load_settings, setting_names

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    ("keys", "api-keys"): "sk-one,sk-two",
    ("keys", "api-key"): "sk-one",
    ("keys", "moderator-keys"): "mod-one",
    ("keys", "redis-password"): "pass-word",
    ("store", "redis-url"): "rediss://:own@store.example:6380/0",
    ("store", "broker-url"): "redis://:own@broker.example:6380/0",
}

Object = dict[str, Any]
Release = dict[str, Object]
Render = Callable[..., Release]


def containers(workload: Object) -> list[Object]:
    pod = workload["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: Object, settings: Object) -> dict[str, str]:
    """What the process will see: names resolved in order, as the kubelet does, with the stand-in SECRETS."""
    seen: dict[str, str] = dict(settings["data"]) if "envFrom" in container else {}
    for entry in container["env"]:
        if "valueFrom" in entry:
            reference = entry["valueFrom"]["secretKeyRef"]
            seen[entry["name"]] = SECRETS[reference["name"], reference["key"]]
        else:
            seen[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: seen[match[1]], entry["value"])
    return seen


def settings_of(component: str, release: Release, workloads: Release) -> Settings:
    container = containers(workloads[component])[0]
    return load_settings(environment(container, release["settings-configmap.yaml"]))


def supervised(program: str) -> list[str]:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "supervisord.conf")
    command = parser.get(f"program:{program}", "command")
    return shlex.split(command.replace("%(ENV_UP_PYTHON)s", "python").replace("%(ENV_UP_DATA)s", "/data"))


def test_every_pod_is_hardened(workloads: Release) -> None:
    for component, workload in workloads.items():
        pod = workload["spec"]["template"]["spec"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, component
        assert {context["runAsUser"], context["runAsGroup"], context["fsGroup"]} == {10001}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        for container in containers(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_no_pod_gets_the_variables_of_services(workloads: Release) -> None:
    # With the release name `attune` these would be ATTUNE_SERVER_PORT and the like, which stop every process.
    for workload in workloads.values():
        assert workload["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_a_read_only_root_leaves_tmp_and_data_writable(workloads: Release) -> None:
    for workload in workloads.values():
        for container in containers(workload):
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable == {"/tmp", "/data"}


def test_every_container_is_probed_and_bounded(workloads: Release) -> None:
    for component, workload in workloads.items():
        for container in containers(workload):
            assert container["resources"]["requests"]["memory"], component
            assert container["resources"]["limits"]["memory"], component
            for probe in ("readinessProbe", "livenessProbe"):
                # The kubelet's default timeout of 1 s ends pods that are merely busy.
                assert container[probe]["timeoutSeconds"] >= 3, (component, probe)


def test_liveness_waits_longer_than_readiness(workloads: Release) -> None:
    for component, workload in workloads.items():
        (container,) = containers(workload)
        ready, live = (
            probe["periodSeconds"] * probe["failureThreshold"]
            for probe in (container["readinessProbe"], container["livenessProbe"])
        )
        assert live > ready, component


def test_the_http_processes_are_probed_on_their_own_routes(workloads: Release) -> None:
    (server,), (ui,) = containers(workloads["server"]), containers(workloads["ui"])
    assert server["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert server["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert server["startupProbe"]["httpGet"]["path"] == "/health/live"
    assert ui["startupProbe"]["httpGet"]["path"] == "/"
    for container in (server, ui):
        assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "readiness", "liveness")} == {
            "http"
        }


def test_images_have_an_exact_tag(chosen: str, workloads: Release) -> None:
    images = {name: containers(workload)[0]["image"] for name, workload in workloads.items()}
    for image in images.values():
        _, _, tag = image.rpartition(":")
        assert re.fullmatch(r"\d[\w.-]*", tag), image
    if chosen == "custom":
        assert images["server"] == "registry.example:5000/attune-server:0.1.0-cuda"
    if chosen == "defaults":
        assert images["server"] == "attune-server:0.1.0"


def test_no_secret_stands_in_a_manifest(workloads: Release) -> None:
    wanted_by_reference = {
        "ATTUNE_API_KEYS",
        "ATTUNE_API_KEY",
        "ATTUNE_MODERATOR_KEYS",
        "ATTUNE_BROKER_URL",
        "REDIS_PASSWORD",
        "ATTUNE_REDIS_URL",
    }
    for component, workload in workloads.items():
        for container in containers(workload):
            names = [entry["name"] for entry in container["env"]]
            assert len(names) == len(set(names)), component
            for entry in container["env"]:
                if entry["name"] in wanted_by_reference and "valueFrom" not in entry:
                    assert re.fullmatch(r"redis://:\$\(REDIS_PASSWORD\)@[\w-]+:6379/0", entry["value"])


def test_every_setting_that_the_chart_gives_exists(workloads: Release) -> None:
    given = {
        entry["name"]
        for workload in workloads.values()
        for container in containers(workload)
        for entry in container["env"]
        if entry["name"].startswith("ATTUNE_")
    }
    assert "ATTUNE_DATA_DIR" in given
    assert given <= set(setting_names())


def test_each_process_accepts_its_environment(chosen: str, release: Release, workloads: Release) -> None:
    for component in ("server", "worker", "beat", "ui"):
        settings = settings_of(component, release, workloads)
        assert settings.data_dir == "/data"
        if component == "ui":
            assert not settings.redis_url.reveal()
        elif chosen == "own redis":
            assert settings.resolved_redis_url == "rediss://:own@store.example:6380/0"
            assert settings.resolved_broker_url == "redis://:own@broker.example:6380/0"
        else:
            assert settings.resolved_redis_url == "redis://:pass-word@attune-demo-redis:6379/0"
            assert settings.resolved_broker_url == settings.resolved_redis_url


def test_server_and_ui_listen_where_their_services_look(release: Release, workloads: Release) -> None:
    server, ui = (settings_of(name, release, workloads) for name in ("server", "ui"))
    assert (server.host, ui.host) == ("0.0.0.0", "0.0.0.0")
    assert server.api_port == containers(workloads["server"])[0]["ports"][0]["containerPort"]
    assert ui.ui_port == containers(workloads["ui"])[0]["ports"][0]["containerPort"]
    service = release["server-service.yaml"]
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert ui.resolved_api_url == f"http://{name}:{port}"


def test_the_server_alone_knows_the_moderators_who_may_be_none(release: Release, workloads: Release) -> None:
    server, ui = (settings_of(name, release, workloads) for name in ("server", "ui"))
    assert (server.moderators, ui.moderators) == ({"mod-one"}, set())
    (entry,) = (each for each in containers(workloads["server"])[0]["env"] if each["name"] == "ATTUNE_MODERATOR_KEYS")
    assert entry["valueFrom"]["secretKeyRef"]["optional"] is True


def test_the_ui_calls_with_a_key_that_the_server_accepts_and_sees_no_other(
    release: Release, workloads: Release
) -> None:
    server, ui = (settings_of(name, release, workloads) for name in ("server", "ui"))
    assert ui.api_key.reveal() in server.accepted_keys
    assert ui.accepted_keys == {ui.api_key.reveal()}


@pytest.mark.parametrize("component", ["server", "worker", "beat", "ui"])
def test_each_process_starts_as_make_up_starts_it(component: str, render: Render) -> None:
    (container,) = containers(render({})[f"{component}-deployment.yaml"])
    assert container["command"] == supervised(component)
    assert "args" not in container


def test_the_worker_hands_back_and_the_singletons_stay_single(workloads: Release) -> None:
    worker, beat = workloads["worker"]["spec"], workloads["beat"]["spec"]
    assert {"name": "REMAP_SIGTERM", "value": "SIGQUIT"} in containers(workloads["worker"])[0]["env"]
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] >= 120
    assert worker["strategy"] == beat["strategy"] == {"type": "Recreate"}
    assert beat["replicas"] == 1


def test_replicas_are_those_of_the_values(chosen: str, workloads: Release) -> None:
    replicas = {name: workload["spec"]["replicas"] for name, workload in workloads.items()}
    wanted = {"server": 3, "worker": 2, "ui": 2} if chosen == "several" else {"server": 1, "worker": 1, "ui": 1}
    assert replicas == {**wanted, "beat": 1, **({} if chosen == "own redis" else {"redis": 1})}


def test_a_changed_setting_restarts_those_who_read_it(render: Render) -> None:
    before, after = render({}), render({"settings": {"ATTUNE_SEED": 7}})

    def annotations(release: Release, component: str) -> Object:
        found: Object = release[f"{component}-deployment.yaml"]["spec"]["template"]["metadata"]["annotations"]
        return found

    for component in ("server", "worker", "beat"):
        assert annotations(before, component) != annotations(after, component)
    for template in ("redis-statefulset.yaml", "ui-deployment.yaml"):
        assert before[template] == after[template]


def probe(render: Render, component: str, kind: str) -> str:
    """The program of an exec probe."""
    command = containers(render({})[f"{component}-deployment.yaml"])[0][f"{kind}Probe"]["exec"]["command"]
    assert command[:2] == ["python", "-c"]
    program: str = command[2]
    return program


def run(program: str, **environ: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environ}, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode


@pytest.mark.parametrize("component", ["worker", "beat"])
def test_a_worker_is_ready_while_its_broker_listens(component: str, render: Render) -> None:
    program = probe(render, component, "readiness")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://:secret@127.0.0.1:{listener.getsockname()[1]}/0"
        assert run(program, ATTUNE_REDIS_URL=url) == 0
        assert run(program, ATTUNE_REDIS_URL="redis://127.0.0.1:1/0", ATTUNE_BROKER_URL=url) == 0
    assert run(program, ATTUNE_REDIS_URL=url) == 1


def test_a_worker_is_alive_while_it_has_its_pool(render: Render) -> None:
    program = probe(render, "worker", "liveness")
    parent = "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True)"
    parent += "\nsys.stdin.read(); child.kill(); child.wait(); print('gone', flush=True); sys.stdin.close()"
    parent += "\nimport time; time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as main:
        assert main.stdin is not None
        assert main.stdout is not None
        try:
            main.stdout.readline()
            program = program.replace("/proc/1/", f"/proc/{main.pid}/")
            assert run(program) == 0
            main.stdin.close()
            assert main.stdout.readline() == "gone\n"
            assert run(program) == 1
        finally:
            main.kill()


def test_beat_is_alive_while_it_writes_its_schedule(render: Render, tmp_path: Path) -> None:
    program = probe(render, "beat", "liveness").replace("/data", str(tmp_path))
    assert run(program) == 1
    for suffix in (".dat", ".bak"):
        (tmp_path / f"beat-schedule{suffix}").touch()
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "beat-schedule.bak", (hour_ago, hour_ago))
    assert run(program) == 0
    os.utime(tmp_path / "beat-schedule.dat", (hour_ago, hour_ago))
    assert run(program) == 1
