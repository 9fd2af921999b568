"""docs/reference.md: it is what `make docs` writes, and nothing that a user can call is missing."""

from typing import Any

from fastapi.routing import APIRoute
from typer.main import get_command

from serve_app.__main__ import cli
from tools.reference import FILE, application, reference

WRITTEN = FILE.read_text()
OF_THE_PAGE = "/page/{name}"


def test_it_is_current() -> None:
    """Descriptions of routes, fields and options are changed in the code."""
    assert reference() == WRITTEN, "run `make docs`"


def test_it_has_each_route() -> None:
    """Those of /docs with a section, other names of the same routes in a sentence."""
    routes = [route for route in application().routes if isinstance(route, APIRoute)]
    assert len(routes) >= 25
    for route in routes:
        if route.include_in_schema:
            assert all(f"### {method} {route.path}\n" in WRITTEN for method in route.methods), route.path
        elif route.path != OF_THE_PAGE:
            assert f"{route.path}`" in WRITTEN


def test_it_has_each_command() -> None:
    """With each argument and option."""
    check_commands("whisperx-serve", get_command(cli))


def check_commands(name: str, group: Any) -> None:
    for under, command in group.commands.items():
        section = WRITTEN.partition(f"### {name} {under}\n")[2].partition("\n### ")[0]
        assert section
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
            assert f"`{shown}" in section, f"{under} {shown}"
        if hasattr(command, "commands"):
            check_commands(f"{name} {under}", command)


def test_a_person_can_read_it() -> None:
    """No names of JSON Schema and of Python, and no link to a section that is missing."""
    for noise in ("anyOf", "$ref", "None", "serve_app__", "additionalProperties", "Successful Response"):
        assert noise not in WRITTEN
