"""docs/reference.md is what `make docs` writes, and lists all that a user can call."""

import re
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from serve_app.__main__ import cli
from serve_app.http.other_apis import BASETEN_PREFIXES
from tools.reference import FILE, application, reference

WRITTEN = FILE.read_text()


def test_it_is_current() -> None:
    """The file is never edited: descriptions of routes, fields and options are in the code."""
    assert reference() == WRITTEN, "run `make docs`"


def test_it_has_each_route() -> None:
    """Each route of /docs has a section; other paths of the same routes are named in a sentence."""
    routes = [(method, path) for path, of in application().openapi()["paths"].items() for method in of]
    assert len(routes) >= 24
    for method, path in routes:
        assert f"### {method.upper()} {path}\n" in WRITTEN
    hidden = [f"{prefix}/async_predict" for prefix in BASETEN_PREFIXES if prefix]
    for path in ("/", "/docs", "/v1/models/whisperx:predict", "/v1/models/whisperx", *hidden):
        assert f"{path}`" in WRITTEN


def test_it_has_each_command() -> None:
    """Each argument and option is listed, and has a help."""
    check_commands("whisperx-serve", get_command(cli))


def check_commands(name: str, group: Any) -> None:
    for under, command in group.commands.items():
        section = WRITTEN.partition(f"### {name} {under}\n")[2].partition("\n### ")[0]
        assert section
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
            assert f"`{shown}" in section, f"{under} {shown}"
            assert parameter.help, f"{under} {shown}"
        if hasattr(command, "commands"):
            check_commands(f"{name} {under}", command)


def test_eval_has_a_help() -> None:
    """The help of `eval` has the options of the program in benchmarks/, and the name of the command."""
    done = CliRunner().invoke(cli, ["eval", "--help"])
    assert done.exit_code == 0
    assert "Usage: whisperx-serve eval" in done.output
    assert "--people" in done.output


def test_a_person_can_read_it() -> None:
    """The page has no names of JSON Schema and of Python, and each section once."""
    for noise in ("anyOf", "$ref", "None", "serve_app__", "additionalProperties", "Successful Response"):
        assert noise not in WRITTEN
    titles = re.findall(r"^#+ (.*)$", WRITTEN, re.MULTILINE)
    assert len({title.lower() for title in titles}) == len(titles)
