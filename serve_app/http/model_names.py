"""The names that a request may give as its model, and the fields that each of them stands for."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.settings.openai import ANY, Defaults

Read = TypeVar("Read")

# A client that sends one of a group wants no other of it.
GROUPS = ({"prompt", "initial_prompt"}, {"keywords", "hotwords"}, {"language", "languages"})


class ModelNames:
    """The configured model, others beside it, and what else they are called."""

    def __init__(self, own: str, aliases: Mapping[str, Defaults], others: Collection[str] = ()) -> None:
        self.own, self.aliases, self._others = own, aliases, others
        self._defaults: dict[str, Defaults] = {own: {}, **{name: {} for name in others}, **aliases}
        self.names = tuple(name for name in self._defaults if name != ANY)

    def defaults(self, name: str) -> Defaults:
        """The options that the name stands for, without the model. Raises ModelNotFound."""
        found = self._meaning(name)
        return {option: value for option, value in found.items() if option != "model"}

    def option(self, name: str) -> str | None:
        """The option `model` that the name stands for; None: the configured one. Raises ModelNotFound."""
        meant = name if name in self._others else self._meaning(name).get("model")
        return None if meant in (None, self.own) else str(meant)

    def _meaning(self, name: str) -> Defaults:
        found = self._defaults.get(name, self._defaults.get(ANY))
        if found is None:
            names = ", ".join(self.names)
            raise ModelNotFound(f"There is no model {name!r} here; use one of {names}.", "model")
        return found


def with_defaults(
    defaults: Defaults, sent: Mapping[str, Any], read: Callable[[dict[str, Any]], Read]
) -> tuple[Read, frozenset[str]]:
    """What `read` makes of the fields sent and of those defaults that fit them, and the names of the latter.

    Defaults never make a valid request invalid. While `read` fails, one default is dropped: the one that its
    error names, else one whose removal helps, else the last.
    """
    taken = sent.keys() | {name for group in GROUPS if group & sent.keys() for name in group}
    left = {name: value for name, value in defaults.items() if name not in taken}

    def without(name: str) -> dict[str, Any]:
        return {other: value for other, value in left.items() if other != name}

    def attempt(defaults: Mapping[str, Any]) -> Read | InvalidRequest:
        try:
            return read({**defaults, **sent})
        except InvalidRequest as error:
            return error

    while isinstance(found := attempt(left), InvalidRequest):
        if not left:
            raise found
        wrong = [found.param] if found.param in left else []
        wrong += [name for name in left if not isinstance(attempt(without(name)), InvalidRequest)]
        left = without(wrong[0] if wrong else [*left][-1])
    return found, frozenset(left)


def about_model(error: InvalidRequest, model: str, from_model: Collection[str]) -> InvalidRequest:
    """The error, or one about the model where it is about an option that the model's name stands for."""
    if error.param not in from_model:
        return error
    option = error.param
    why = f"The model {model} stands for {option}; send another {option}, or another model."
    return InvalidRequest(f"{error.message} {why}", "model", error.code)
