"""The text fields of a form, as JSON would have them."""

import re
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.options import Options, parse_options

Field = tuple[str, str]  # name as it is sent, value

OPTION_ARRAYS = ("known_speaker_names", "known_speaker_references")

_ARRAY_NAME = re.compile(r"(\w+)\[([0-9]{0,3})\]")


def gathered(fields: Sequence[Field], arrays: Collection[str]) -> dict[str, Any]:
    """One entry for each name; those in `arrays` are lists, sent as `name[]`, `name` or `name[0]`, repeated.

    Empty values are left out, as a form in a browser sends its empty inputs, too; but not from an array that
    has others, where each has its place. Raises InvalidRequest where any other name is given more than once,
    and where the numbers of an array have gaps.
    """
    single: dict[str, str] = {}
    several: dict[str, list[tuple[int, str]]] = {}
    for sent, value in fields:
        name, index = named(sent)
        if name in arrays:
            values = several.setdefault(name, [])
            values.append((len(values) if index is None else index, value))
        elif sent in single:
            raise InvalidRequest(f"{sent}: given more than once; send it once.", sent)
        else:
            single[sent] = value
    lists = {name: _in_order(name, values) for name, values in several.items()}
    return {name: value for name, value in (single | lists).items() if any(value)}


def _in_order(name: str, values: Sequence[tuple[int, str]]) -> list[str]:
    ordered = sorted(values, key=itemgetter(0))
    if [number for number, _ in ordered] != list(range(len(ordered))):
        raise InvalidRequest(f"{name}: number its values {name}[0], {name}[1] and so on, each once.", name)
    return [value for _, value in ordered]


def named(sent: str) -> tuple[str, int | None]:
    """`name`, `name[]` or `name[3]` as the name, and the number if there is one."""
    array = _ARRAY_NAME.fullmatch(sent)
    if array is None:
        return sent, None
    return array[1], int(array[2]) if array[2] else None


def form_options(fields: Sequence[Field]) -> Options:
    """The options of /predict, or InvalidRequest naming the one that is wrong."""
    return parse_options(gathered(fields, OPTION_ARRAYS))
