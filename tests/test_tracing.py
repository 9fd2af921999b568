"""What the exporter of traces sends, to a collector that takes it."""

import pytest
from collector import Collector
from opentelemetry.sdk.trace import TracerProvider

from serve_app.errors import SourceUnavailable
from serve_app.tracing import exporter


def test_of_an_error_only_its_kind_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its text, which may hold the address of a client's file, nor the stack; the span is whole."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    provider = TracerProvider()
    for processor in exporter():
        provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")
    attributes = {"request_id": "one"}
    with (
        tracer.start_as_current_span("request") as parent,
        pytest.raises(SourceUnavailable),
        tracer.start_as_current_span("stage", attributes=attributes) as span,
    ):
        raise SourceUnavailable("https://example.com/private.mp3 answered 404.")
    provider.shutdown()
    collector.close()
    (sent,) = [each for each in collector.spans if each.name == "stage"]
    assert (sent.attributes, sent.id) == (attributes, f"{span.get_span_context().span_id:016x}")
    assert sent.parent_id == f"{parent.get_span_context().span_id:016x}"
    assert sent.is_error
    assert "SourceUnavailable" in sent.error
    assert "private" not in sent.error
    assert "stacktrace" not in sent.error
