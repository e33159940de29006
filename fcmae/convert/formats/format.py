"""What a weight format is: its names and its tensor layouts, relative to our pretraining checkpoint."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fcmae.convert.formats.layouts import Layout
from fcmae.errors import InputError

_FIELD = re.compile(r"\{(\w+)\}|\[([^]]+)\]")
# What a field of a name stands for; `path` is the rest of the name.
_FIELDS = {"stage": r"\d+", "block": r"\d+", "param": "weight|bias", "path": ".+"}

_Table = list[tuple[re.Pattern[str], str]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A table of names, and the layouts of those weights that are not stored as ours are."""

    name: str
    marks: Mapping[str, int]
    """Keys that weights of this format have, with their numbers of dimensions; no other format has them all.
    `[backbone.]` in a key means: with or without it."""
    lacks: tuple[str, ...] = ()
    """Keys that weights of this format do not have, and those of a format that includes it have."""
    names: Mapping[str, str]
    """Name in this format -> our name. `{stage}`, `{block}`, `{param}` and `{path}` stand for themselves;
    what is in brackets is written, and may be absent where it is read. `a+b.weight` in a name stands for
    `a.weight` and `b.weight`, whose tensors lie one after the other in ours. Of several names for one of ours
    the first is written."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Our name -> layout in this format; others are as ours."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Name in this format that ours has no counterpart for -> why it is not needed."""
    note: str = ""
    """What a reader of weights of this format should know, one line."""

    def matches(self, state_dict: Mapping[str, object]) -> bool:
        """Whether these are keys of this format."""
        return not any(key in state_dict for key in self.lacks) and all(
            any(
                isinstance(tensor := state_dict.get(key), Tensor) and tensor.ndim == ndim
                for key in _spellings(mark)
            )
            for mark, ndim in self.marks.items()
        )

    def to_ours(self, key: str) -> str | None:
        """Our name of `key`, or None when the table does not explain it."""
        return _translate(key, self._forward)

    def from_ours(self, name: str) -> str | None:
        """This format's key for our `name`, or None when it has none."""
        return _translate(name, self._backward)

    def why_dropped(self, key: str) -> str | None:
        """Why ours needs no `key`, or None when the table does not say so."""
        return _translate(key, self._dropped)

    def import_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A weight in this format's layout as a dense PyTorch one.

        Args:
            name: Ours.
            tensor: As stored.
        Raises:
            InputError: it cannot have this layout.
        """
        layout = self._layout(name)
        if layout is None:
            return tensor
        try:
            return layout.to_ours(tensor)
        except InputError as error:
            raise InputError(f"{self.from_ours(name)} {list(tensor.shape)}: {error}") from error

    def export_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A dense PyTorch weight in this format's layout, the inverse of import_tensor."""
        layout = self._layout(name)
        return tensor if layout is None else layout.from_ours(tensor)

    def join(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights in which the tensors that are one in ours have become one, under their joint names."""
        joined = dict(state_dict)
        for first, pattern, joint in self._joints:
            for key in [key for key in joined if pattern.fullmatch(key)]:
                whole = key.replace(f".{first}.", f".{joint}.")
                if all(part in joined for part in _parts(whole)):
                    joined[whole] = torch.cat([joined.pop(part) for part in _parts(whole)])
        return joined

    def split(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of join."""
        split: dict[str, Tensor] = {}
        for key, tensor in weights.items():
            parts = _parts(key)
            split.update(zip(parts, tensor.chunk(len(parts)) if len(parts) > 1 else [tensor], strict=True))
        return split

    def shapes_of(self, ours: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
        """Key -> shape in this format, of those of our names that it has a place for."""
        return {
            key: self.export_tensor(name, torch.empty(shape, device="meta")).shape
            for name, shape in ours.items()
            if (key := self.from_ours(name)) is not None
        }

    def _layout(self, name: str) -> Layout | None:
        return next((layout for pattern, layout in self._layouts if pattern.fullmatch(name)), None)

    @cached_property
    def _forward(self) -> _Table:
        return [(pattern_of(theirs), _written(ours)) for theirs, ours in self.names.items()]

    @cached_property
    def _backward(self) -> _Table:
        return [(pattern_of(ours), _written(theirs)) for theirs, ours in self.names.items()]

    @cached_property
    def _dropped(self) -> _Table:
        return [(pattern_of(theirs), why) for theirs, why in self.dropped.items()]

    @cached_property
    def _joints(self) -> list[tuple[str, re.Pattern[str], str]]:
        """(first part, pattern of its key, joint part) of each name with a `+`."""
        found = [(name, part) for name in self.names for part in name.split(".") if "+" in part]
        firsts = [(part.split("+")[0], name, part) for name, part in found]
        return [(first, pattern_of(name.replace(part, first)), part) for first, name, part in firsts]

    @cached_property
    def _layouts(self) -> list[tuple[re.Pattern[str], Layout]]:
        return [(pattern_of(name), layout) for name, layout in self.layouts.items()]


def pattern_of(template: str) -> re.Pattern[str]:
    """What a name with fields stands for; the fields are the groups."""
    parts, end = [], 0
    for found in _FIELD.finditer(template):
        parts.append(re.escape(template[end : found.start()]))
        known, optional = found.groups()
        parts.append(f"(?P<{known}>{_FIELDS[known]})" if known else f"(?:{re.escape(optional)})?")
        end = found.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def _written(template: str) -> str:
    """The template with its brackets' content."""
    return template.replace("[", "").replace("]", "")


def _spellings(key: str) -> Iterator[str]:
    yield _written(key)
    yield re.sub(r"\[[^]]+\]", "", key)


def _parts(key: str) -> list[str]:
    """The names that a joint one stands for; a name without `+` stands for itself."""
    joint = next((part for part in key.split(".") if "+" in part), None)
    if joint is None:
        return [key]
    return [key.replace(f".{joint}.", f".{part}.") for part in joint.split("+")]


def _translate(key: str, table: _Table) -> str | None:
    for pattern, template in table:
        if found := pattern.fullmatch(key):
            return template.format(**found.groupdict())
    return None
