"""Fields of a request, checked: what is wrong with one becomes an InvalidRequest that names it."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serve_app.errors import InvalidRequest
from serve_app.languages import LANGUAGES, language_code

Model = TypeVar("Model", bound=BaseModel)

MAX_ITEMS = len(LANGUAGES)  # of a list; a name of a language takes up to 0.1 ms


def known_language(value: object, also: str = "") -> str:
    """Whisper's code for a language. Raises ValueError."""
    code = language_code(value) if isinstance(value, str) else None
    if code is None:
        raise ValueError(
            "must be a language that Whisper knows, by a language code or by name, such as en, pt-BR, "
            f"German or Deutsch{also}"
        )
    return code


def items_of(values: object) -> list[object]:
    """The items of a list of plain words, however it is written: also `a,b` and `["a", "b"]` in a text.

    Raises ValueError for more than MAX_ITEMS.
    """
    given: Sequence[object] = values if isinstance(values, list | tuple) else [values]
    items: list[object] = []
    for value in given:
        if isinstance(value, str):
            words = value.strip("[] ").split(",", MAX_ITEMS)
            items += [item for word in words if (item := word.strip(" \"'"))]
        else:
            items.append(value)
        if len(items) > MAX_ITEMS:
            raise ValueError(f"give at most {MAX_ITEMS}")
    return items


def conflict(name: str, why: str) -> InvalidRequest:
    """The error for a field that contradicts others. A ValueError could not name the field."""
    return InvalidRequest(f"{name}: {why}.", name)


def validate_or_400(model: type[Model], fields: dict[str, Any]) -> Model:
    """The fields as this model. Raises InvalidRequest naming the field that is wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        param = str(first["loc"][0]) if name else None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown option; known are {', '.join(sorted(model.model_fields))}"
        raise InvalidRequest(f"{name}: {message}." if name else f"{message}.", param) from None
