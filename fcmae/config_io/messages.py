"""What a configuration's keys are, and the one line that says what is wrong with one."""

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from fcmae.errors import InputError


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One value of a configuration: `train.steps`."""

    key: str
    hint: Any
    default: Any
    help: str


def sections(leaves: Iterable[str]) -> set[str]:
    return {key.rpartition(".")[0] for key in leaves} - {""}


def check_key(key: str, leaves: Iterable[str], origin: str) -> None:
    known, groups = list(leaves), sections(leaves)
    if key in known:
        return
    nearest = difflib.get_close_matches(key, [*known, *groups], n=1, cutoff=0.5)
    if key in groups:
        advice = f"It is a section: name one of its fields, {key}.<field>."
    else:
        advice = f"The nearest is {nearest[0]}." if nearest else "--help lists them."
    raise InputError(f"{origin}: expected a configuration key, got {key}. {advice}")


def refusal(
    error: argparse.ArgumentError,
    leaves: Mapping[str, Leaf],
    origin: str,
    lines: Mapping[str, int] | None = None,
) -> InputError:
    """The parser's error, which takes several lines and names Python types, as one line."""
    text = error.message
    key = re.match(r'Parser key "([^"]+)"|argument --([^:]+): expected one argument', text)
    if stray := re.match(r"unrecognized arguments: (.*)", text, re.DOTALL | re.IGNORECASE):
        return InputError(
            f"{origin}: expected --section.field=VALUE, got {stray[1]}. "
            "Write a file as --config FILE and a list as [0.5,1.0]."
        )
    given = re.search(r"(?:Got|Given) value: (.*)\Z", text, re.DOTALL)
    if key is None or (name := key[1] or key[2]) not in leaves or not (given or key[2]):
        return InputError(f"{origin}: {' '.join(text.split())}")
    got = "none" if given is None else " ".join(given[1].replace("'", "").split()) or "nothing"
    where = f"{origin}, line {lines[name]}" if lines and name in lines else origin
    return InputError(f"{name}: expected {describe(leaves[name].hint)}, got {got} ({where}).")


def describe(hint: Any) -> str:
    """A type in words: `int or [int, int]`."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(arguments)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return f"[{describe(arguments[0])}, ...]"
        return f"[{', '.join(map(describe, arguments))}]"
    names = {types.NoneType: "null", bool: "true or false", str: "text", int: "integer", float: "number"}
    return names[hint]
