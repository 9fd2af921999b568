"""`make docs`: docs/reference.md, from the OpenAPI document of the service and the helps of its commands."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from typer.main import get_command

from serve_app.__main__ import cli
from serve_app.http.app import create_app
from serve_app.http.without_text import WithoutText
from serve_app.jobs.service import Jobs
from serve_app.options import Options
from serve_app.settings import IntakeSettings
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.settings.jobs import JobsSettings

Schema = dict[str, Any]

FILE = Path(__file__).parents[1] / "docs" / "reference.md"

INTRODUCTION = """# Reference

Every route and every command, with their fields and options. `make docs` writes this page from the same \
descriptions that `GET /docs` and `--help` show; do not edit it. [api.md](api.md), [jobs.md](jobs.md), \
[openai.md](openai.md) and [transcribe.md](transcribe.md) explain how things are used.

`GET /` is the [page](page.md), `GET /docs` shows the routes for trying out, and `GET /openapi.json` is \
their schema. Where a server has [API keys](deploy.md#keys), send `Authorization: Bearer KEY`."""

OPTIONS = """## Options

What a caller can choose for one request. Everywhere below, *the options* are these fields; \
[api.md](api.md#options) says more about them. In a form, a field of a list is sent as `name[]`, \
repeated."""

ERRORS = """## Errors

The body of an error is `{"error": {"message", "type", "param", "code"}}`; on the paths of Baseten and \
AssemblyAI it has their shape, on `/asr` there is none. [api.md](api.md#errors) says when to send a \
request again. A 424 has further codes: [intake.md](intake.md#urls)."""

COMMANDS = """## Commands

`whisperx-serve` and `python -m serve_app` are the same. The option `--help` of each command is left out \
here."""


def reference() -> str:
    """The whole page."""
    document = application().openapi()
    schemas = document["components"]["schemas"]
    options = Options.model_json_schema()["properties"]
    blocks = [INTRODUCTION, _contents(document), OPTIONS, _table(_rows(options, options=()))]
    shown: set[str] = set()
    for tag in document["tags"]:
        blocks += [f"## {tag['name']}", tag["description"]]
        new: list[str] = []
        for path, method, operation in _operations(document, tag["name"]):
            blocks += [f"### {method.upper()} {path}", *_operation(operation, options)]
            answers = {status: it for status, it in operation["responses"].items() if status < "300"}
            new += _named(answers, schemas)
        for name in (name for name in dict.fromkeys(new) if name not in shown):
            shown.add(name)
            fields = schemas[name]
            blocks += [
                f"### {_title(name)}",
                fields["description"],
                _table(_answer_rows(fields), default=False),
            ]
    blocks += [
        ERRORS,
        "\n".join(_errors(document)),
        COMMANDS,
        *_commands(["whisperx-serve"], get_command(cli)),
    ]
    return "\n\n".join(blocks) + "\n"


def application() -> FastAPI:
    """The application of a server that keeps jobs and has API keys. It can only describe itself."""

    async def unused(*_: Any) -> Any:
        raise NotImplementedError

    access = AccessSettings(keys=(ApiKey(name="nobody", sha256="0" * 64),))
    jobs = Jobs(JobsSettings(), IntakeSettings())
    return create_app(
        unused,
        unused,
        model="large-v2",
        max_bytes=1,
        access=access,
        detect_language=unused,
        without_text=WithoutText(unused, unused),
        jobs=jobs,
    )


def _operations(document: Schema, tag: str) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield path, method, operation


def _contents(document: Schema) -> str:
    lines = ["- [Options](#options)"]
    for tag in (each["name"] for each in document["tags"]):
        heads = [f"{method.upper()} {path}" for path, method, _ in _operations(document, tag)]
        lines.append(
            f"- [{tag}](#{tag.lower()}): " + ", ".join(f"[{head}](#{_anchor(head)})" for head in heads)
        )
    return "\n".join([*lines, "- [Errors](#errors)", "- [Commands](#commands)"])


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _operation(operation: Schema, options: Schema) -> Iterator[str]:
    yield _in_lines(operation["description"])
    described = [each for each in operation.get("parameters", ()) if "description" in each]
    if described:
        parameters = {
            each["name"]: {**each["schema"], "description": each["description"]} for each in described
        }
        header = {each["name"] for each in described if each["in"] == "header"}
        yield _table(_rows(parameters, options=(), notes=dict.fromkeys(header, "A header.")), "parameter")
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        yield f"Body: {' or '.join(f'`{kind}`' for kind in content)}."
        yield _table(_body_rows(content, options))
    yield "\n".join(_answers(operation["responses"]))


def _body_rows(content: Schema, options: Schema) -> Iterator[str]:
    """A row for each field of any kind of body; the options share one row."""
    kinds = {"JSON": content.get("application/json"), "a form": content.get("multipart/form-data")}
    schemas = {kind: each["schema"] for kind, each in kinds.items() if each}
    fields: Schema = {}
    notes: Schema = {}
    required: set[str] = set()
    for kind, schema in schemas.items():
        fields |= schema["properties"]
        required |= {*schema.get("required", ())}
        others = [other["properties"] for other in schemas.values() if other is not schema]
        notes |= {
            name: f"Only in {kind}." for name in schema["properties"] if any(name not in o for o in others)
        }
    yield from _rows(fields, options=options, notes=notes, required=required)


def _rows(
    fields: Schema, *, options: Iterable[str], notes: Schema | None = None, required: Iterable[str] = ()
) -> Iterator[str]:
    """A row for each field, also those of inner objects; the options share one row at the end."""
    known = Options.model_json_schema()["properties"]
    same = {
        name: name.removesuffix("[]")
        for name, field in fields.items()
        if name.removesuffix("[]") in options
        and field["description"] == known[name.removesuffix("[]")]["description"]
    }
    for name, field in fields.items():
        if name not in same:
            default = "required" if name in required else _default(field)
            yield _row(f"`{name}`", _type(field), default, field["description"], (notes or {}).get(name, ""))
            inner = field.get("properties", {})
            if not inner.keys() & known.keys():
                yield from _rows({f"{name}.{each}": of for each, of in inner.items()}, options=())
    if same:
        without = [name for name in options if name not in same.values()]
        but = f", but not {', '.join(f'`{name}`' for name in without)}" if without else ""
        yield _row("[the options](#options)", "", "", f"All of them{but}.")


def _answer_rows(schema: Schema) -> Iterator[str]:
    for name, field in schema["properties"].items():
        may_miss = "" if name in schema.get("required", ()) else "May be missing."
        yield _row(f"`{name}`", _type(field, has_null=True), field.get("description", ""), may_miss, text=2)


def _table(rows: Iterable[str], head: str = "field", *, default: bool = True) -> str:
    titles = [head, "type", "default", ""] if default else [head, "type", ""]
    return "\n".join([f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *rows])


def _row(*cells: str, text: int = 3) -> str:
    """A row of a table; the cells from number `text` on are joined into one."""
    whole = [*cells[:text], " ".join(filter(None, cells[text:]))]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in whole)} |"


def _default(field: Schema) -> str:
    value = field.get("default")
    return "" if value in (None, "", [], {}) else f"`{json.dumps(value)}`".replace('"', "")


def _type(field: Schema, *, has_null: bool = False) -> str:
    """The type of a field in words."""
    if name := field.get("$ref"):
        title = _title(name.rpartition("/")[2])
        return f"[{title}](#{title.lower()})"
    if choices := field.get("anyOf"):
        names = [_type(each) for each in choices if each.get("type") != "null"]
        return " or ".join(
            dict.fromkeys([*names, *(["null"] if has_null and len(names) < len(choices) else [])])
        )
    if values := field.get("enum", [field["const"]] if "const" in field else []):
        return ", ".join(f"`{json.dumps(value)}`".replace('"', "") for value in values)
    if field["type"] == "array":
        limit = f", at most {field['maxItems']}" if "maxItems" in field else ""
        items = re.sub("(string|object|integer)$", r"\1s", _type(field["items"]))
        return f"list of {items}{limit}"
    if field.get("format") == "binary":
        return "file"
    least, most = field.get("minimum"), field.get("maximum")
    if least is not None:
        between = f"from {least:g}" if most is None else f"{least:g} to {most:g}"
        return f"{field['type']}, {between}"
    return str(field["type"])


def _answers(responses: Schema) -> Iterator[str]:
    """The answers to a request: each kind of success, and the codes of errors."""
    errors = []
    for status, response in sorted(responses.items()):
        content = response.get("content", {})
        about = "" if response["description"] == "Successful Response" else response["description"]
        codes = [code for code, _ in _codes(response)]
        if codes:
            errors.append(f"{status} {', '.join(f'`{code}`' for code in codes)}")
        elif status != "default":
            answer = _type(content["application/json"]["schema"]) if "application/json" in content else ""
            texts = ", ".join(f"`{kind}`" for kind in content if kind != "application/json")
            what = ", else ".join(filter(None, [answer, texts])) or "no body"
            yield f"- **{status}**: {what}. {about}".strip()
    if errors:
        yield f"- [Errors](#errors): {'; '.join(errors)}."
    if (other := responses.get("default", {}).get("description")) not in (None, "Any other error."):
        yield f"- All errors: {other}"


def _codes(response: Schema) -> list[tuple[str, str]]:
    return re.findall(r"^`(\w+)`: (.*)$", response["description"], re.MULTILINE)


def _errors(document: Schema) -> Iterator[str]:
    known = {
        (status, code): meaning
        for methods in document["paths"].values()
        for operation in methods.values()
        for status, response in operation["responses"].items()
        for code, meaning in _codes(response)
    }
    yield from ["| status | code | |", "| --- | --- | --- |"]
    for (status, code), meaning in sorted(known.items()):
        yield _row(status, f"`{code}`", meaning, text=2)


def _named(part: Any, schemas: Schema) -> Iterator[str]:
    """The names of the schemas that this one uses, also indirectly."""
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(part)):
        yield name
        yield from _named(schemas[name], schemas)


def _title(name: str) -> str:
    return name.removesuffix("Out")


def _in_lines(text: str) -> str:
    """The text with a line for each paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _commands(names: list[str], command: Any) -> Iterator[str]:
    """A section for each command and those under it."""
    for name, under in getattr(command, "commands", {}).items():
        yield f"### {' '.join([*names, name])}"
        yield _in_lines(under.help)
        panels: dict[str, list[str]] = {}
        for parameter in under.params:
            is_argument = not parameter.opts[0].startswith("-")
            shown = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
            needed = "required" if parameter.required else ""
            default = needed or ("" if parameter.default in (None, False) else f"`{parameter.default}`")
            variable = f"Also as `${parameter.envvar}`." if parameter.envvar else ""
            row = _row(f"`{shown}`", default, parameter.help, variable, text=2)
            panels.setdefault(parameter.rich_help_panel or "", []).append(row)
        for panel, rows in panels.items():
            yield "\n".join([f"| {panel or 'option'} | default | |", "| --- | --- | --- |", *rows])
        yield from _commands([*names, name], under)


if __name__ == "__main__":
    FILE.write_text(reference())
