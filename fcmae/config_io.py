"""Configurations in and out: a YAML file and the command line become a checked dataclass, and back."""

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace

from fcmae.errors import InputError

Config = TypeVar("Config")

CONFIG_HELP = "YAML file with the differences from the defaults; options given here override it."


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One value of a configuration: `train.steps`."""

    key: str
    hint: Any
    default: Any
    help: str


def load_config(cls: type[Config], argv: Sequence[str]) -> Config:
    """The configuration that `--config FILE` and dotted options (`--train.steps=5`) describe.

    Both are read as text, by the field's type, so that `1e-3`, `null`, `[0.5, 1.0]` and `002` mean the same
    in a file and on the command line. Options override the file wherever they stand. Nothing is printed.

    Args:
        cls: PretrainConfig or FinetuneConfig.
        argv: The arguments after the command's name.
    Raises:
        InputError: an unreadable file, an unknown key (the nearest is named), a value of another type, or one
            that the configuration itself refuses.
    """
    leaves = _leaves(cls)
    parser = _parser(cls, leaves)
    paths, options = _split_config(argv)
    namespace = None
    if paths:
        if len(paths) > 1:
            raise InputError(f"--config: expected one file, got {len(paths)}. A run has one YAML file.")
        namespace = _parse_file(parser, paths[0], leaves)
    for option in options:
        if option.startswith("--"):
            _check_key(option[2:].partition("=")[0], leaves, "command line")
    try:
        parsed = parser.parse_args(options, namespace)
    except argparse.ArgumentError as error:
        raise _refusal(error, leaves, "command line") from None
    return _build(cls, parsed)


def config_help(cls: type[Any], *, prog: str, description: str) -> str:
    """The text of `--help`: every option with its docstring, type and default."""
    leaves = _leaves(cls)
    parser = _parser(cls, leaves)
    parser.prog, parser.description = prog, description
    parser.usage = f"{prog} [--config FILE] [--section.field=VALUE ...]"
    return parser.format_help()


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, lists for tuples: safe for YAML and `torch.load`."""
    return {
        field.name: to_dict(value)
        if dataclasses.is_dataclass(value := getattr(config, field.name))
        else list(value)
        if isinstance(value, tuple)
        else value
        for field in dataclasses.fields(config)
    }


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """The configuration that `to_dict` gave; keys that are missing take their defaults.

    Raises:
        InputError: as `load_config`.
    """
    leaves = _leaves(cls)
    for key in _flat_keys(values, leaves):
        _check_key(key, leaves, "configuration")
    try:
        parsed = _parser(cls, leaves).parse_object(dict(values))
    except argparse.ArgumentError as error:
        raise _refusal(error, leaves, "configuration") from None
    return _build(cls, parsed)


def save_config(config: Any, path: str | Path) -> None:
    """Write every value of the configuration as YAML that `--config` reads."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def _leaves(cls: type[Any]) -> dict[str, _Leaf]:
    """The values of a configuration class by dotted key, in order."""
    return {leaf.key: leaf for leaf in _walk(cls, "", cls())}


def _walk(cls: type[Any], prefix: str, default: Any) -> Iterator[_Leaf]:
    hints = get_type_hints(cls)
    helps = {
        param.arg_name: param.description or ""
        for base in reversed(cls.__mro__[:-1])  # a field keeps the docstring of the class that declared it
        for param in parse_from_object(base).params
    }
    for field in dataclasses.fields(cls):
        key, value = prefix + field.name, getattr(default, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _walk(hints[field.name], key + ".", value)
        else:
            yield _Leaf(key, hints[field.name], value, helps.get(field.name, ""))


def _parser(cls: type[Any], leaves: Mapping[str, _Leaf]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    hints = get_type_hints(cls)
    groups: dict[str, Any] = {}
    for leaf in leaves.values():
        section = leaf.key.rpartition(".")[0]
        if section not in groups:
            title = (hints[section] if section else cls).__doc__ or section
            groups[section] = parser.add_argument_group(title.splitlines()[0].rstrip("."))
        groups[section].add_argument(f"--{leaf.key}", type=leaf.hint, default=leaf.default, help=leaf.help)
    return parser


def _split_config(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of `--config`, and the other arguments: the file has to be read before they override it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        known, options = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        raise InputError("--config: expected a YAML file, got none. Write --config FILE.") from None
    return known.config, options


def _parse_file(parser: ArgumentParser, path: str, leaves: Mapping[str, _Leaf]) -> Namespace:
    try:
        text = Path(path).read_text(encoding="utf-8")
        # BaseLoader leaves every scalar a string, for the parser to read by the field's type: YAML 1.1 alone
        # would make a string of 1e-3 and the number 2 of 002.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise InputError(f"--config: expected a YAML file, got {path} ({reason}).") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}, line {line}: expected YAML, got an error: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML, got an error: {' '.join(str(error).split())}.") from None
    lines: dict[str, int] = {}
    values = {} if node is None else _read_section(node, "", path, leaves, lines)
    try:
        return parser.parse_object(values)
    except argparse.ArgumentError as error:
        raise _refusal(error, leaves, path, lines) from None


def _read_section(
    node: yaml.Node, prefix: str, path: str, leaves: Mapping[str, _Leaf], lines: dict[str, int]
) -> dict[str, Any]:
    """The mapping `node` as nested dicts of strings and lists; notes the line of every key."""
    if isinstance(node, yaml.ScalarNode) and node.value == "":
        return {}  # a section whose lines are all commented out
    if not isinstance(node, yaml.MappingNode):
        got = node.value if isinstance(node, yaml.ScalarNode) else "a list"
        where = f"{path}, line {node.start_mark.line + 1}"
        raise InputError(
            f"{where}: expected lines of `name: value` in {prefix[:-1] or 'the file'}, got {got}."
        )
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = prefix + (key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping")
        if key in lines:
            raise InputError(
                f"{path}, line {line}: expected each key once, got {key} again (first: {lines[key]})."
            )
        lines[key] = line
        if key in _sections(leaves):
            values[key_node.value] = _read_section(value_node, key + ".", path, leaves, lines)
        else:
            _check_key(key, leaves, f"{path}, line {line}")
            values[key_node.value] = yaml.BaseLoader("").construct_object(value_node, deep=True)
    return values


def _sections(leaves: Iterable[str]) -> set[str]:
    return {key.rpartition(".")[0] for key in leaves} - {""}


def _flat_keys(values: Mapping[str, Any], leaves: Iterable[str], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if prefix + name in _sections(leaves) and isinstance(value, Mapping):
            yield from _flat_keys(value, leaves, f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_key(key: str, leaves: Iterable[str], origin: str) -> None:
    known, sections = list(leaves), _sections(leaves)
    if key in known:
        return
    nearest = difflib.get_close_matches(key, [*known, *sections], n=1, cutoff=0.5)
    if key in sections:
        advice = f"It is a section: name one of its fields, {key}.<field>."
    else:
        advice = f"The nearest is {nearest[0]}." if nearest else "--help lists them."
    raise InputError(f"{origin}: expected a configuration key, got {key}. {advice}")


def _refusal(
    error: argparse.ArgumentError,
    leaves: Mapping[str, _Leaf],
    origin: str,
    lines: Mapping[str, int] | None = None,
) -> InputError:
    """The parser's error, which takes several lines and names Python types, as one line."""
    text = error.message
    key = re.match(r'Parser key "([^"]+)"|argument --([^:]+): expected one argument', text)
    if stray := re.match(r"unrecognized arguments: (.*)", text, re.DOTALL | re.IGNORECASE):
        return InputError(
            f"{origin}: expected --section.field=VALUE, got {stray[1]}. Write a list as [0.5,1.0]."
        )
    given = re.search(r"(?:Got|Given) value: (.*)\Z", text, re.DOTALL)
    if key is None or (name := key[1] or key[2]) not in leaves or not (given or key[2]):
        return InputError(f"{origin}: {' '.join(text.split())}")
    got = "none" if given is None else " ".join(given[1].replace("'", "").split()) or "nothing"
    where = f"{origin}, line {lines[name]}" if lines and name in lines else origin
    return InputError(f"{name}: expected {_describe(leaves[name].hint)}, got {got} ({where}).")


def _describe(hint: Any) -> str:
    """A type in words: `int or [int, int]`."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(arguments)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return f"[{_describe(arguments[0])}, ...]"
        return f"[{', '.join(map(_describe, arguments))}]"
    names = {types.NoneType: "null", bool: "true or false", str: "text", int: "integer", float: "number"}
    return names[hint]


def _build(cls: type[Config], parsed: Namespace) -> Config:
    """The dataclass and its sections; their `__post_init__` may raise InputError."""
    hints = get_type_hints(cls)
    return cls(
        **{
            field.name: _build(hints[field.name], parsed[field.name])
            if dataclasses.is_dataclass(hints[field.name])
            else parsed[field.name]
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        }
    )
