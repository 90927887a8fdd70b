"""The README is tested: its settings table is the code's, its tree exists, its commands are the Makefile's."""

import ast
import itertools
import re
from pathlib import Path

import msgspec

from rlhf_core.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def documented_settings() -> dict[str, tuple[str, str]]:
    """Name to (default, text) of each row of the README's settings table."""
    rows = re.findall(r"^\| `(ATTUNE_\w+)` \| (.*?) \| (.*?) \|$", README, flags=re.MULTILINE)
    return {name: (default.strip("`"), text) for name, default, text in rows}


def settings_in_code() -> dict[str, tuple[str, str]]:
    """Name to (default, docstring under the field)."""
    tree = ast.parse((ROOT / "rlhf_core" / "settings.py").read_text())
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings").body
    texts: dict[str, str] = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = str(text.value.value)
    defaults = Settings()
    return {
        PREFIX + field.name.upper(): (str(getattr(defaults, field.name)), texts[field.name])
        for field in msgspec.structs.fields(Settings)
    }


def test_the_settings_table_is_the_code() -> None:
    documented, code = documented_settings(), settings_in_code()
    assert list(documented) == list(code)
    for name, (default, text) in code.items():
        assert documented[name] == (default, text), name


def test_every_verb_of_the_makefile_is_in_the_readme() -> None:
    verbs = re.findall(r"^(\w+): \$\(STAMP\)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert len(verbs) >= 7
    for verb in verbs:
        assert f"make {verb}" in README, verb


def test_every_path_in_the_tree_exists() -> None:
    tree = README.split("```text", 1)[1].split("```", 1)[0]
    paths = re.findall(r"^([\w./-]+/?)\s{2,}", tree, flags=re.MULTILINE)
    assert len(paths) >= 20
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_license_and_the_changelog_stand_beside_it() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert re.search(r"^## 0\.1\.0", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
