"""What a weight format is: its names and its tensor layouts, relative to our pretraining checkpoint."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_FIELD = re.compile(r"\{(\w+)\}")
# What a field of a name stands for; `path` is the rest of the name.
_FIELDS = {"stage": r"\d+", "block": r"\d+", "param": "weight|bias", "path": ".+"}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A table of names and a layout function."""

    name: str
    marker: str
    """A key that weights of this format have and others do not."""
    names: Mapping[str, str]
    """Name in this format -> our name; `{stage}`, `{block}`, `{param}` and `{path}` stand for themselves."""
    layout: Callable[[Tensor, torch.Size], Tensor]
    """(tensor of either side, shape wanted) -> the same numbers in that shape; the tensor as it is when this
    format has no such layout."""

    def to_ours(self, key: str) -> str | None:
        """Our name of `key`, or None when the table does not explain it."""
        return _translate(key, self._forward)

    def from_ours(self, key: str) -> str | None:
        """This format's name of our `key`, or None when it has none."""
        return _translate(key, self._backward)

    @cached_property
    def _forward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), ours) for theirs, ours in self.names.items()]

    @cached_property
    def _backward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(ours), theirs) for theirs, ours in self.names.items()]


def _pattern(template: str) -> re.Pattern[str]:
    parts = _FIELD.split(template)  # literal, field, literal, field, ..., literal
    return re.compile(
        "".join(
            f"(?P<{part}>{_FIELDS[part]})" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
    )


def _translate(key: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in table:
        if found := pattern.fullmatch(key):
            return template.format(**found.groupdict())
    return None
