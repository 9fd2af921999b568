"""The errors a caller can meet, with HTTP status, type and code. Those of jobs are in `jobs` and `http.jobs`.

All arguments are positional: an exception with keyword-only arguments does not survive the way from one Ray
replica to another. `str()` of an error that crossed replicas is a remote traceback, so answers are built from
`message`, never from `str()`.
"""


class TranscriptionError(Exception):
    """Base class. `message` is one plain sentence that says what to do."""

    status = 500
    type = "server_error"
    code = "internal_error"
    retry_after_s: int | None = None  # whole seconds, for errors that pass by themselves

    def __init_subclass__(cls, status: int = 0, type: str = "", code: str = "") -> None:  # noqa: A002
        cls.status, cls.type, cls.code = status or cls.status, type or cls.type, code or cls.code

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, retry_after_s: int = 0
    ) -> None:
        super().__init__(message, param, code, retry_after_s)
        self.message, self.param = message, param
        self.code = code or self.code
        self.retry_after_s = retry_after_s or self.retry_after_s

    def __str__(self) -> str:  # in a log or a traceback: the sentence, not the tuple of arguments
        return self.message


class ModelCrashed(TranscriptionError, code="model_crashed"):
    """Every process that worked on this audio died of it; sending it again would kill the next ones."""


class InvalidRequest(TranscriptionError, status=400, type="invalid_request_error", code="invalid_request"):
    """The request itself is wrong; sending it again will not help."""


class Unauthorized(TranscriptionError, status=401, type="authentication_error", code="invalid_api_key"):
    """The server does not know the API key; without one the code is `missing_api_key`."""


class NoApiKeys(TranscriptionError, status=403, type="permission_error", code="no_api_keys"):
    """The server has no API keys, so it answers its own machine and trusted networks only."""


class ModelNotFound(TranscriptionError, status=404, type="invalid_request_error", code="model_not_found"):
    """The request names a model that this server does not have."""


class UploadTooSlow(TranscriptionError, status=408, type="invalid_request_error", code="upload_too_slow"):
    """The body had not arrived whole when the time for receiving it was over."""


class IdempotencyConflict(
    TranscriptionError, status=409, type="invalid_request_error", code="idempotency_conflict"
):
    """The idempotency key was sent before, with another request."""


class PayloadTooLarge(TranscriptionError, status=413, type="invalid_request_error", code="payload_too_large"):
    """The upload or the fetched file has more bytes than the configured limit."""


class EncodedBody(
    TranscriptionError, status=415, type="invalid_request_error", code="unsupported_content_encoding"
):
    """The body is compressed or encoded as a whole, and the server takes it only as it is."""


class UnusableAudio(TranscriptionError, status=422, type="invalid_request_error", code="undecodable_audio"):
    """The bytes arrived but cannot be decoded."""


class EmptyAudio(UnusableAudio, code="empty_audio"):
    """There is nothing to decode, or decoding gave no samples."""


class NoAudioStream(UnusableAudio, code="no_audio_stream"):
    """The file is readable but has no sound track."""


class EncryptedAudio(UnusableAudio, code="encrypted_audio"):
    """The sound track is copy-protected."""


class AudioTooLong(UnusableAudio, code="audio_too_long"):
    """Decoding passed the configured number of seconds."""


class AudioTooCostly(UnusableAudio, code="audio_too_costly"):
    """Decoding passed a limit on wall time, processor time or memory."""


class SourceUnavailable(TranscriptionError, status=424, type="source_error", code="source_unavailable"):
    """The audio URL could not be fetched; `code` says why (`dns_failure`, `too_slow`, ...)."""


class RateLimited(TranscriptionError, status=429, type="rate_limit_error", code="too_many_requests"):
    """The key's limit is reached; the answer carries `Retry-After`, in whole seconds."""

    retry_after_s = 5


class Overloaded(TranscriptionError, status=503, code="overloaded"):
    """No capacity now; the answer carries `Retry-After`, in whole seconds."""

    retry_after_s = 5


class NoRoom(Overloaded):
    """The server is full, or shutting down, whatever was sent."""


class StoreBusy(Overloaded, code="job_store_busy"):
    """The store of jobs is locked by others for too long, or cannot be reached."""


class OutOfMemory(Overloaded):
    """A model call found too little memory, on a GPU or on the host, even for one item."""


class DeadlineExceeded(TranscriptionError, status=504, code="deadline_exceeded"):
    """The server-side deadline of the request passed."""


class ModelUnavailable(TranscriptionError, status=503, code="model_unavailable"):
    """A model is unknown, gated, unreachable or broken; the message says how to get it."""
