"""What the routes of other vendors' APIs share: small JSON bodies, renamed fields, errors in their shape."""

import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app.errors import EncodedBody, InvalidRequest, PayloadTooLarge
from serve_app.http.responses import error_response
from serve_app.options import Model, validate_or_400

MAX_BODY_BYTES = 256 << 10  # Baseten's limit

# Not text/plain nor a form: a browser sends those for any web page, without asking the server first.
_JSON = re.compile(r"(application|text)/([\w.-]+\+)?json")

Shape = Callable[[int, Mapping[str, str]], dict[str, Any]]  # of a status and our `error`: their body


def key_name(request: Request) -> str:
    """The name of the caller's API key, empty where the server has none."""
    return str(request.scope.get("api_key_name", ""))


def route_class(shape: Shape) -> type[APIRoute]:
    """The class of routes whose errors have this shape, with our statuses and headers."""

    class ShapedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handle(request)
                except Exception as error:
                    if isinstance(error, HTTPException):
                        raise
                    response = error_response(error)
                    told = json.loads(bytes(response.body))["error"]
                    response.body = response.render(shape(response.status_code, told))
                    response.headers["Content-Length"] = str(len(response.body))
                    return response

            return answer

    return ShapedRoute


def described(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a body in JSON."""
    content = {"application/json": {"schema": model.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


async def json_fields(request: Request) -> dict[str, Any]:
    """The fields of a small JSON body. Raises InvalidRequest, EncodedBody, PayloadTooLarge."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _JSON.fullmatch(kind):
        message = "Send a JSON object, and Content-Type: application/json."
        raise InvalidRequest(message, None, "unsupported_content_type")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise EncodedBody("Send the body without Content-Encoding.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise PayloadTooLarge(
                    f"The request body is over {MAX_BODY_BYTES} bytes; give the URL of the audio instead."
                )
    except ClientDisconnect:  # nobody reads this answer, but a disconnect is no failure for the error log
        raise InvalidRequest("The connection closed before the whole body had come.") from None
    try:
        fields = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_unique)
        json.dumps(fields, ensure_ascii=False).encode()  # it fails for lone surrogates
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON in UTF-8.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields


def validated_in(parent: str, model: type[Model], fields: dict[str, Any]) -> Model:
    """The fields of the object `parent` as this model. Raises InvalidRequest naming `parent.field`."""
    try:
        return validate_or_400(model, fields)
    except InvalidRequest as error:
        separator, param = (".", f"{parent}.{error.param}") if error.param else (": ", parent)
        raise InvalidRequest(f"{parent}{separator}{error.message}", param, error.code) from None


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Raises the InvalidRequest from inside with the field's name as the client sent it: ours -> theirs."""
    try:
        yield
    except InvalidRequest as error:
        ours = error.param or ""
        if (theirs := names.get(ours)) is None:
            raise
        raise InvalidRequest(error.message.replace(ours, theirs, 1), theirs, error.code) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidRequest("The body has a name twice in one object; send each once.")
    return fields
