"""The answers of OpenAI's audio API, as compact JSON schemas made from its published OpenAPI document.

Written from that document's facts (openai/openai-openapi of August 2026), not copied. Stricter in one way: no
name may be there that neither OpenAI's document nor our README has.
"""

from typing import Any

from jsonschema import Draft202012Validator

STRING = {"type": "string"}
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}


def has(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
        "additionalProperties": False,
    }


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


WARNINGS = {**array(has({"stage": STRING, "code": STRING, "message": STRING})), "minItems": 1}  # ours

DURATION = has({"type": {"const": "duration"}, "seconds": {**NUMBER, "minimum": 0}})
WORD = has({"word": STRING, "start": NUMBER, "end": NUMBER})
SEGMENT = has(
    {
        "id": INTEGER,
        "seek": INTEGER,
        "start": NUMBER,
        "end": NUMBER,
        "text": STRING,
        "tokens": array(INTEGER),
        "temperature": NUMBER,
        "avg_logprob": NUMBER,
        "compression_ratio": NUMBER,
        "no_speech_prob": NUMBER,
    },
    speaker=STRING,  # ours
)
DIARIZED_SEGMENT = has(
    {
        "type": {"const": "transcript.text.segment"},
        "id": STRING,
        "start": NUMBER,
        "end": NUMBER,
        "text": STRING,
        "speaker": STRING,
    }
)
LANGUAGES = {**array(has({"code": STRING})), "minItems": 1}  # ours in verbose_json and diarized_json
LOGPROBS = array(has({"token": STRING, "logprob": {**NUMBER, "maximum": 0}, "bytes": array(INTEGER)}))
EMBEDDINGS: dict[str, Any] = {  # ours, where they are asked for
    "speaker_embeddings": {"type": "object", "additionalProperties": array(NUMBER)},
    "embedding_model": has({"name": STRING, "dimension": INTEGER}),
}
MODEL = has({"id": STRING, "object": {"const": "model"}, "created": INTEGER, "owned_by": STRING})
VERBOSE = has(
    {"language": STRING, "duration": NUMBER, "text": STRING},
    task={"enum": ["transcribe", "translate"]},
    words=array(WORD),
    segments=array(SEGMENT),
    usage=DURATION,
    languages=LANGUAGES,
    warnings=WARNINGS,
    **EMBEDDINGS,
)

SCHEMAS: dict[str, Any] = {
    "json": has(
        {"text": STRING, "usage": DURATION}, languages=LANGUAGES, logprobs=LOGPROBS, warnings=WARNINGS
    ),
    "verbose_json": VERBOSE,
    "diarized_json": has(
        {
            "task": {"const": "transcribe"},
            "duration": NUMBER,
            "text": STRING,
            "segments": array(DIARIZED_SEGMENT),
            "usage": DURATION,
        },
        languages=LANGUAGES,
        warnings=WARNINGS,
        **EMBEDDINGS,
    ),
    "transcript.text.delta": has(
        {"type": {"const": "transcript.text.delta"}, "delta": STRING}, segment_id=STRING
    ),
    "transcript.text.segment": DIARIZED_SEGMENT,
    "transcript.text.done": has(
        {"type": {"const": "transcript.text.done"}, "text": STRING},
        languages=LANGUAGES,
        logprobs=LOGPROBS,
        warnings=WARNINGS,
        **EMBEDDINGS,
    ),
    "error": has(
        {
            "error": has(
                {
                    "message": STRING,
                    "type": STRING,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "model": MODEL,
    "models": has({"object": {"const": "list"}, "data": array(MODEL)}),
}


def check(name: str, body: Any) -> None:
    """Raises jsonschema's ValidationError if `body` does not match OpenAI's schema of this name."""
    Draft202012Validator(SCHEMAS[name]).validate(body)


def check_event(event: dict[str, Any]) -> str:
    """The type of an event of a stream, after checking the event."""
    kind: str = event["type"]
    check(kind, event)
    return kind
