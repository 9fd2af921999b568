"""A request to the one route of whisper.cpp's server: its form fields, as a request to OpenAI's routes."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from serve_app.http.forms import FormField, collect_fields
from serve_app.http.model_names import ModelNames
from serve_app.http.openai.request import ParsedForm, parse
from serve_app.options.validation import conflict, validate_or_400
from serve_app.transcript import Task

HAVE_NO_TIMES = ("json", "text")


class InferenceFields(BaseModel):
    """The fields that only whisper.cpp has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    translate: bool = Field(False, description="Into English.")
    no_timestamps: bool = Field(False, description="With json and text, which have none.")
    beam_size: int | None = Field(
        None, description="Beam width of the search. Empty or -1, its default there: as configured."
    )


def parse_inference(sent: Sequence[FormField], models: ModelNames) -> ParsedForm:
    """Parses the fields of a form for `/inference`, which needs no model.

    Raises InvalidRequest naming the field that is wrong, and ModelNotFound.
    """
    names = InferenceFields.model_fields.keys()
    own = collect_fields([each for each in sent if each[0] in names], ())
    fields = validate_or_400(InferenceFields, own)
    others = [each for each in sent if each[0] not in names and each != ("model", "")]
    if not any(name == "model" for name, _ in others):
        others.append(("model", models.own))
    if fields.beam_size not in (None, -1):
        others.append(("beam_size", str(fields.beam_size)))
    task: Task = "translate" if fields.translate else "transcribe"
    form = parse(others, task, models)
    if fields.no_timestamps and form.fields.response_format not in HAVE_NO_TIMES:
        raise conflict("no_timestamps", f"{form.fields.response_format} has times; ask for json or text")
    return form
