"""The Dockerfile, read as Docker reads it: a target for each process, commands as in `make up`, nobody runs as root."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("server", "worker", "beat", "ui")
WITHOUT_TORCH = {"beat": "workers.app", "ui": "ui.app"}

Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Stage to its instructions, its own FROM first."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[Instruction]] = {"": []}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found[rest.rpartition(" AS ")[2]] = current = []
        else:
            current = list(found.values())[-1]
        current.append((name, rest.strip()))
    return found


STAGES = stages()


def lineage(stage: str) -> list[Instruction]:
    """Instructions of a stage after those of the stages that it is built from."""
    parent = STAGES[stage][0][1].split(" ")[0]
    return [*(lineage(parent) if parent in STAGES else []), *STAGES[stage]]


def last(stage: str, name: str) -> str:
    return [rest for instruction, rest in lineage(stage) if instruction == name][-1]


def copied(stage: str) -> list[str]:
    """Sources that a stage takes from the build context."""
    copies = [rest for name, rest in lineage(stage) if name == "COPY" and not rest.startswith("--from=")]
    return [source for rest in copies for source in shlex.split(rest)[:-1]]


def test_the_images_that_the_chart_names_are_targets() -> None:
    values = (ROOT / "helm" / "values.yaml").read_text()
    assert set(re.findall(r"repository: attune-(\w+)", values)) == set(TARGETS)
    assert set(TARGETS) < set(STAGES)


@pytest.mark.parametrize("target", TARGETS)
def test_its_command_is_that_of_make_up(target: str) -> None:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "supervisord.conf")
    command = parser.get(f"program:{target}", "command")
    command = command.replace("%(ENV_UP_PYTHON)s", "python").replace("%(ENV_UP_DATA)s", "/data")
    # JSON, so that the process itself and no shell gets the signals.
    assert json.loads(last(target, "CMD")) == shlex.split(command)
    assert not [rest for name, rest in lineage(target) if name == "ENTRYPOINT"]


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_the_user_of_the_chart(target: str) -> None:
    pods = (ROOT / "helm" / "templates" / "_pods.tpl").read_text()
    uid, gid = (re.findall(rf"{key}: (\d+)", pods)[0] for key in ("runAsUser", "runAsGroup"))
    assert last(target, "USER") == f"{uid}:{gid}"
    # Nothing after USER may run as another.
    assert [name for name, _ in lineage(target)].count("USER") == 1


@pytest.mark.parametrize("target", TARGETS)
def test_what_it_copies_exists_and_is_not_ignored(target: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert "rlhf_core" in copied(target)
    for source in [*copied(target), "requirements.lock"]:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore, source


@pytest.mark.parametrize("target", TARGETS)
def test_what_it_copies_from_other_stages_was_made_there(target: str) -> None:
    copies = [rest for name, rest in STAGES[target] if name == "COPY" and rest.startswith("--from=")]
    assert len(copies) == 1
    stage, path = re.findall(r"--from=(\S+) (\S+)", copies[0])[0]
    assert any(f"venv {path}" in rest for name, rest in lineage(stage) if name == "RUN")
    assert ("torch" in stage) == (target not in WITHOUT_TORCH)


def test_every_base_has_an_exact_python_and_nothing_is_fetched_aside() -> None:
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11[\w.-]*", STAGES[""][0][1])
    for stage, instructions in STAGES.items():
        for name, rest in instructions:
            assert name != "ADD", stage
            if name == "FROM":
                assert rest.split(" ")[0] in {"${PYTHON_IMAGE}", *STAGES}, rest


def test_torch_is_pinned_where_the_dockerfile_looks_for_it() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert len(re.findall(r"^torch==\S+$", lock, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("target", sorted(WITHOUT_TORCH))
def test_its_process_needs_neither_torch_nor_the_other_packages(target: str, tmp_path: Path) -> None:
    sources = copied(target)
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    absent = ["torch", *{"server", "workers", "ui"} - set(sources)]
    program = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {WITHOUT_TORCH[target]} as found"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(found.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path))
