"""Traces of Serve, sent to a collector by OTLP over HTTP, and the span of a whole request.

`tracing_config` in the config file names `exporter`; each process of Serve calls it once, the proxy too.
OpenTelemetry's own variables say where to: OTEL_EXPORTER_OTLP_ENDPOINT and the like (docs/operations.md).
"""

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

SERVICE_NAME = "OTEL_SERVICE_NAME"
KIND_OF_ERROR = "exception.type"

tracer = trace.get_tracer("serve_app")  # its spans are nothing where tracing is off


class WithoutErrorTexts(BatchSpanProcessor):
    """Of an error it sends the kind. The text may name a client's file, and Serve records text and stack."""

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(
            ReadableSpan(
                span.name,
                span.context,
                span.parent,
                span.resource,
                span.attributes,
                [Event(each.name, _kind_only(each), each.timestamp) for each in span.events],
                span.links,
                span.kind,
                status=trace.Status(span.status.status_code),
                start_time=span.start_time,
                end_time=span.end_time,
                instrumentation_scope=span.instrumentation_scope,
            )
        )


def _kind_only(event: Event) -> dict[str, str]:
    kind = (event.attributes or {}).get(KIND_OF_ERROR)
    return {KIND_OF_ERROR: str(kind)} if kind else {}


def exporter() -> list[SpanProcessor]:
    """What sends the spans of this process."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    os.environ.setdefault(SERVICE_NAME, "whisperx-serve")  # Serve's provider, made after this, reads it
    return [WithoutErrorTexts(OTLPSpanExporter())]
