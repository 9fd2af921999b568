"""What a client asks for at `POST /v1/jobs`: one job with its audio, or many by their URLs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema
from starlette.requests import Request

from serve_app.audio import Source
from serve_app.errors import InvalidRequest
from serve_app.http.forms import MAX_TEXT_BYTES, FormField, collect_fields, too_much_text
from serve_app.http.uploads import PredictRequest
from serve_app.jobs.service import Submission, within
from serve_app.options import Options
from serve_app.options.fields import LISTS
from serve_app.options.validation import conflict, validate_or_400

IDEMPOTENCY_KEY = "Idempotency-Key"
IDEMPOTENCY_HEADER = {
    "name": IDEMPOTENCY_KEY,
    "in": "header",
    "description": "The same key with the same request gives the same job again.",
    "schema": {"type": "string", "maxLength": 255},
}
MAX_ITEMS = 1000
MAX_QUEUE_S = 366 * 24 * 3600


class JobOptions(Options):
    """The fields of a form: the options of `/predict`, and how the job waits and is reported."""

    webhook_url: str | None = Field(None, description="https URL that is told when the job has ended.")
    priority: Annotated[int, Field(ge=0, le=2)] = Field(0, description="0 to 2; 0 is first.")
    max_queue_s: Annotated[float, Field(gt=0, le=MAX_QUEUE_S)] | None = Field(
        None, description="The job expires if it has not started after this many seconds."
    )
    max_attempts: Annotated[int, Field(ge=1, le=10)] = Field(
        3, description="Attempts in all; another one is made only where it can help."
    )


JOB_FIELDS = JobOptions.model_fields.keys() - Options.model_fields.keys()


class JobItem(JobOptions):
    """One of the `items` of a JobBody."""

    audio_file: str
    headers: dict[str, str] = Field(default_factory=dict)


Item = Annotated[dict[str, Any], WithJsonSchema(JobItem.model_json_schema())]


class JobBody(JobOptions, PredictRequest):
    """The JSON body of `POST /v1/jobs`: exactly one of `audio_file`, `audio_b64` and `items`."""

    # They are read one by one, each with the fields of the body as its defaults.
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)] | None = Field(
        None,
        description=f"Up to {MAX_ITEMS} jobs: objects with `audio_file` and any of the fields here but "
        "`audio_b64` and `items`. The other fields of the body are the defaults for all of them.",
    )

    def _check_source(self) -> None:
        if self.items is None:
            super()._check_source()
            return
        for name in ("audio_file", "audio_b64"):
            if getattr(self, name) is not None:
                raise conflict(name, "cannot be combined with items; give each of them an audio_file")

    def asked(self) -> "Asked":
        """The jobs of the body. Raises InvalidRequest and PayloadTooLarge."""
        if self.items is None:
            return Asked((_submission(self),))
        defaults = self.model_dump(exclude_unset=True, exclude={"items"})
        jobs = tuple(_item(defaults | item, f"items.{number}") for number, item in enumerate(self.items))
        # A few megabytes next to `items` would be stored with each of them.
        if sum(len(text) for job in jobs for text in job.options.known_speaker_references) > MAX_TEXT_BYTES:
            raise too_much_text()
        return Asked(jobs, is_list=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """The jobs of one request; only those of a list have their sources from the start."""

    jobs: tuple[Submission, ...]
    is_list: bool = False

    def with_source(self, source: Source) -> Sequence[Submission]:
        """The jobs; a single one has the source that came with the request."""
        return self.jobs if self.is_list else [replace(self.jobs[0], source=source)]


def form_job(fields: Sequence[FormField]) -> Asked:
    """The job that a form asks for. Raises InvalidRequest naming the field that is wrong."""
    return Asked((_submission(validate_or_400(JobOptions, collect_fields(fields, LISTS))),))


def idempotency_key(request: Request) -> str | None:
    """The key in the request's header. Raises InvalidRequest."""
    given = request.headers.getlist(IDEMPOTENCY_KEY)
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch("[ -~]{1,255}", given[0]):
        message = f"{IDEMPOTENCY_KEY}: send it once, with 1 to 255 printable ASCII characters."
        raise InvalidRequest(message, IDEMPOTENCY_KEY)
    return given[0]


def described_json(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of another API's body, which is JSON."""
    content = {"application/json": {"schema": model.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}, "parameters": [IDEMPOTENCY_HEADER]}


def _item(fields: dict[str, Any], place: str) -> Submission:
    with within(place):
        item = validate_or_400(JobItem, fields)
    return replace(_submission(item), source=Source(url=item.audio_file, headers=item.headers), place=place)


def _submission(asked: JobOptions) -> Submission:
    options = Options.model_validate(asked.model_dump(include=set(Options.model_fields)))
    return Submission(source=Source(), options=options, **asked.model_dump(include=JOB_FIELDS))
