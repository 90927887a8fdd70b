"""Options of the commands that train, made from the settings structs: one option per field, its docstring the help.

No torch here. A struct checks its own bounds; this module only turns text into its fields and names the option when
that fails.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from rlhf_core.errors import SettingsError
from rlhf_core.models.lora_settings import LoraSettings

Struct = TypeVar("Struct", bound=msgspec.Struct)

SHARED: Final = frozenset({"seed"})
"""Fields that the options common to all commands fill."""


def declare_run(
    parser: argparse.ArgumentParser,
    *settings: type[msgspec.Struct],
    lora: bool = False,
    model: str = "model to train",
    keep_every: int = 20,
) -> None:
    """The options of a command that trains: where it reads and writes, how it computes, and every setting.

    `keep_every` is the default of that option, in what the command calls an update: a step, or a round of sampling.
    """
    declare_model(parser, model)
    declare_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory; the result is DIR/model")
    parser.add_argument("--seed", type=int, default=0, help="orders the data and draws whatever is drawn (default 0)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out where it stopped")
    parser.add_argument(
        "--keep-every",
        type=_above_zero,
        default=keep_every,
        metavar="N",
        help=f"keep a state to resume after N updates ({keep_every})",
    )
    declare_compute(parser)
    for each in settings:
        declare_settings(parser, each)
    if lora:
        parser.add_argument("--lora", action="store_true", help="train a LoRA adapter (peft) beside frozen weights")
        declare_settings(parser, LoraSettings, prefix="lora_")


def declare_model(parser: argparse.ArgumentParser, text: str, *, required: bool = True) -> None:
    parser.add_argument("--model", required=required, metavar="MODEL", help=f"{text}: a directory, a hub id, or `desk`")


def declare_data(parser: argparse.ArgumentParser) -> None:
    """`--data` and what to do with rows that are not what they should be."""
    parser.add_argument(
        "--data", type=Path, required=True, nargs="+", metavar="FILE", help="JSONL or Parquet files, read in this order"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad rows out and count them, instead of refusing"
    )


def declare_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compute",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="precision of forward passes; weights that learn stay float32. auto: bfloat16 where hardware has it",
    )
    parser.add_argument("--threads", type=_not_below_zero, default=0, help="CPU threads; 0 (default): torch's choice")
    parser.add_argument("--force", action="store_true", help="start even if the memory needed is more than there is")


def declare_reward(parser: argparse.ArgumentParser) -> None:
    """`--reward`, as `runs/reward_function.py` reads it."""
    parser.add_argument(
        "--reward",
        required=True,
        metavar="REWARD",
        help="a reward checkpoint, or module:function, a callable over lists of prompts and of responses (texts)",
    )


def declare_settings(
    parser: argparse.ArgumentParser,
    settings: type[msgspec.Struct],
    *,
    prefix: str = "",
    besides: type[msgspec.Struct] | None = None,
) -> None:
    """One option per field, but for those of `besides`. What is not given does not appear among the parsed options."""
    declared = SHARED if besides is None else SHARED | {field.name for field in msgspec.structs.fields(besides)}
    group = parser.add_argument_group(f"settings ({settings.__name__})")
    texts = field_texts(settings)
    for field in msgspec.structs.fields(settings):
        if field.name in declared:
            continue
        kind = _plain(field.type)
        flag = "--" + (prefix + field.name).replace("_", "-")
        text = f"{texts.get(field.name, '')} (default {_shown(_default(field))})".replace("%", "%%").strip()
        extra: dict[str, Any] = {"nargs": _count(kind), "metavar": "X"} if get_origin(kind) is tuple else {}
        if kind is bool:
            extra = {"action": argparse.BooleanOptionalAction}
        elif get_origin(kind) is dict:
            extra = {"nargs": "+", "metavar": "NAME=X"}
        elif get_origin(kind) is Literal:
            extra = {"choices": get_args(kind)}
        elif not extra:
            extra = {"metavar": getattr(kind, "__name__", "X").upper()}
        group.add_argument(flag, dest=prefix + field.name, default=argparse.SUPPRESS, help=text, **extra)


def read_settings(
    options: argparse.Namespace, settings: type[Struct], *, prefix: str = "", **defaults: object
) -> Struct:
    """The struct that the options describe; `defaults` stand for options that were not given.

    Raises SettingsError naming the option and its value.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(settings):
        if field.name in SHARED:
            values[field.name] = options.seed
        elif hasattr(options, prefix + field.name):
            values[field.name] = _convert(prefix + field.name, getattr(options, prefix + field.name), field.type)
        elif field.name in defaults:
            values[field.name] = defaults[field.name]
    return settings(**values)


def read_lora(options: argparse.Namespace) -> LoraSettings | None:
    """The adapter that is wanted; None trains all weights.

    Raises SettingsError for a setting of an adapter that nobody asked for.
    """
    if getattr(options, "lora", False):
        return read_settings(options, LoraSettings, prefix="lora_")
    for name in vars(options):
        if name.startswith("lora_"):
            raise SettingsError(f"--{name.replace('_', '-')} means something only with --lora")
    return None


def field_texts(settings: type[msgspec.Struct]) -> dict[str, str]:
    """The docstring under each field of a struct, inherited ones included."""
    texts: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        if not issubclass(each, msgspec.Struct) or each is msgspec.Struct:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                texts[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts


def _convert(name: str, given: object, kind: Any) -> Any:
    flag = "--" + name.replace("_", "-")
    shown = " ".join(given) if isinstance(given, list) else given
    try:
        return msgspec.convert(_plainly(given, kind), kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{flag} is {shown}: {str(error)[0].lower()}{str(error)[1:]}") from None


def _plainly(given: object, kind: Any) -> object:
    if get_origin(_plain(kind)) is dict and isinstance(given, list):
        return dict(str(each).partition("=")[::2] for each in given)
    return None if isinstance(given, str) and given.lower() == "none" else given


def _plain(kind: Any) -> Any:
    """A field's type without its bounds and without None."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        rest = [each for each in get_args(kind) if each is not NoneType]
        return _plain(rest[0]) if len(rest) == 1 else str
    return kind


def _count(kind: Any) -> int | str:
    """How many values a tuple takes, as argparse says it."""
    inside = get_args(kind)
    return "+" if inside[-1] is Ellipsis else len(inside)


def _default(field: Any) -> object:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else None


def _shown(value: object) -> str:
    if isinstance(value, tuple | dict):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _above_zero(text: str) -> int:
    return _bounded(text, 1)


def _not_below_zero(text: str) -> int:
    return _bounded(text, 0)


def _bounded(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"it must be at least {least}, not {number}")
    return number
