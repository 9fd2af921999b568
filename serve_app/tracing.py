"""Traces of Serve, sent to a collector by OTLP over HTTP, and the span of a whole request.

`tracing_config` in the config file names `exporter`; each process of Serve calls it once, the proxy too.
OpenTelemetry's own variables say where to: OTEL_EXPORTER_OTLP_ENDPOINT and the like (docs/operations.md).
"""

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

SERVICE_NAME = "OTEL_SERVICE_NAME"

tracer = trace.get_tracer("serve_app")  # its spans are nothing where tracing is off


def exporter() -> list[SpanProcessor]:
    """What sends the spans of this process."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    os.environ.setdefault(SERVICE_NAME, "whisperx-serve")  # Serve's provider, made after this, reads it
    return [BatchSpanProcessor(OTLPSpanExporter())]
