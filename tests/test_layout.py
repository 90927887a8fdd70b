"""The house rules of imports, checked on the source: who may import whom, and the one home of each third party."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rlhf_core", "server", "workers", "ui")
TENSOR_LIBRARIES = {"torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers"}

HOMES = {
    "litestar": ("server/",),
    "uvicorn": ("server/",),
    "prometheus_client": ("server/",),
    "celery": ("workers/",),
    "kombu": ("workers/",),
    "gradio": ("ui/",),
    "httpx": ("ui/", "server/bench/"),
    "matplotlib": ("ui/",),
    "redis": ("rlhf_core/store/",),
    "supervisor": ("rlhf_core/up.py",),
    "pyarrow": ("rlhf_core/runs/",),
    "tqdm": ("rlhf_core/runs/", "ui/"),
    "numba": ("rlhf_core/models/kernels/",),
    "llvmlite": ("rlhf_core/models/kernels/",),
    **dict.fromkeys(TENSOR_LIBRARIES, ("rlhf_core/",)),
}
"""Outside `rlhf_core`, only the bench may touch a tensor library: it races `generate()`."""
HOMES["torch"] += ("server/bench/",)
HOMES["safetensors"] += ("server/bench/",)
HOMES["transformers"] += ("server/bench/",)

RECORDS_TIER = (
    "records",
    "axes",
    "settings",
    "errors",
    "checked",
    "checkpoints",
    "compatibility",
    "baselines",
    "gate_rules",
    "preferences",
    "wilson",
    "ledger",
    "up",
    "cli",
    "learning.sft_settings",
    "models.lora_settings",
    "runs.options",
    "runs.data_files",
    "runs.rows",
    "runs.tally",
    "runs.sft",
    "runs.reward",
    "runs.ppo",
    "runs.dpo",
    "runs.kto",
    "runs.rloo",
    "runs.score",
    "runs.estimate",
    "runs.verify",
    "store",
    "desk.slots",
    "desk.grammar",
    "desk.demonstrations",
    "desk.raters",
    "desk.quality",
)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    allowed = {package, "rlhf_core"}
    for path in sources(package):
        for name in imports(path):
            top = name.split(".")[0]
            assert top not in set(PACKAGES) - allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_the_ui_knows_only_records_and_settings_of_the_core() -> None:
    allowed = {"rlhf_core.records", "rlhf_core.settings", "rlhf_core.errors"}
    for path in sources("ui"):
        # The demo is the scripted raters themselves, so it alone may know the desk's grammar.
        extra = (
            {"rlhf_core.desk.raters", "rlhf_core.desk.grammar", "rlhf_core.wilson"}
            if path.name.startswith("demo")
            else set()
        )
        for name in imports(path):
            if name.startswith("rlhf_core"):
                assert name in allowed | extra, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_third_party_has_one_home(library: str) -> None:
    for package in PACKAGES:
        for path in sources(package):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(HOMES[library]):
                continue
            used = [found for found in imports(path) if found.split(".")[0] == library]
            assert not used, f"{name} imports {used[0]}, which lives in {HOMES[library]}"


def modules_of(tier: tuple[str, ...]) -> list[str]:
    found = []
    for name in tier:
        path = ROOT / "rlhf_core" / name.replace(".", "/")
        if path.is_dir():
            found += [f"rlhf_core.{name}.{child.stem}" for child in path.glob("*.py")]
        else:
            assert path.with_suffix(".py").exists(), f"{name} is listed here but does not exist"
            found.append(f"rlhf_core.{name}")
    return sorted(module.removesuffix(".__init__") for module in found)


@pytest.mark.parametrize(
    "modules",
    [modules_of(RECORDS_TIER), ["workers.app", "workers.tasks"], ["ui.client", "ui.demo"]],
    ids=["records tier", "worker main process", "ui client"],
)
def test_importing_it_never_loads_torch(modules: list[str]) -> None:
    program = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_the_core_packages_are_empty() -> None:
    assert (ROOT / "rlhf_core" / "__init__.py").read_text().strip() == ""


def test_no_module_is_named_for_nothing() -> None:
    for package in PACKAGES:
        for path in sources(package):
            assert path.stem not in {"utils", "helpers", "common", "misc"}, path


def test_no_file_passes_five_hundred_lines() -> None:
    for package in PACKAGES:
        for path in sources(package):
            lines = len(path.read_text().splitlines())
            assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines"
