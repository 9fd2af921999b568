"""Every error a caller can meet, with its HTTP status, type and code.

All arguments are positional: an exception with keyword-only arguments does not survive the way
from one Ray replica to another. `str()` of an error that crossed replicas is a remote traceback,
so answers are built from `message`, never from `str()`.
"""


class TranscriptionError(Exception):
    """Base class. `message` is one plain sentence that says what to do."""

    status = 500
    type = "server_error"
    code = "internal_error"
    retry_after_s: int | None = None  # whole seconds, for errors that pass by themselves

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, param, code, retry_after_s)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def __str__(self) -> str:  # in a log or a traceback: the sentence, not the tuple of arguments
        return self.message


class ModelCrashed(TranscriptionError):
    """Every process that worked on this audio died of it; sending it again would kill the next ones."""

    code = "model_crashed"


class InvalidRequest(TranscriptionError):
    """The request itself is wrong; sending it again will not help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unauthorized(TranscriptionError):
    """The server has API keys, and the request came with none of them."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NoApiKeys(TranscriptionError):
    """The server has no API keys, so it answers its own machine only."""

    status = 403
    type = "permission_error"
    code = "no_api_keys"


class ModelNotFound(TranscriptionError):
    """The request names a model that this server does not have."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class UploadTooSlow(TranscriptionError):
    """The body had not arrived whole when the time for receiving it was over."""

    status = 408
    type = "invalid_request_error"
    code = "upload_too_slow"


class PayloadTooLarge(TranscriptionError):
    """The upload or the fetched file has more bytes than the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class UnusableAudio(TranscriptionError):
    """The bytes arrived but cannot be decoded."""

    status = 422
    type = "invalid_request_error"
    code = "undecodable_audio"


class EmptyAudio(UnusableAudio):
    """There is nothing to decode, or decoding gave no samples."""

    code = "empty_audio"


class NoAudioStream(UnusableAudio):
    """The file is readable but has no sound track."""

    code = "no_audio_stream"


class EncryptedAudio(UnusableAudio):
    """The sound track is copy-protected."""

    code = "encrypted_audio"


class AudioTooLong(UnusableAudio):
    """Decoding passed the configured number of seconds."""

    code = "audio_too_long"


class AudioTooCostly(UnusableAudio):
    """Decoding passed a limit on wall time, processor time or memory."""

    code = "audio_too_costly"


class SourceUnavailable(TranscriptionError):
    """The audio URL could not be fetched; `code` says why (`dns_failure`, `too_slow`, ...)."""

    status = 424
    type = "source_error"
    code = "source_unavailable"


class RateLimited(TranscriptionError):
    """The key's limit is reached; the answer carries `Retry-After`, in whole seconds."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_requests"
    retry_after_s = 5


class Overloaded(TranscriptionError):
    """No capacity now; the answer carries `Retry-After`, in whole seconds."""

    status = 503
    code = "overloaded"
    retry_after_s = 5


class OutOfMemory(Overloaded):
    """A model call found too little memory, on a GPU or on the host, even for one item."""


class DeadlineExceeded(TranscriptionError):
    """The server-side deadline of the request passed."""

    status = 504
    code = "deadline_exceeded"


class ModelUnavailable(TranscriptionError):
    """A model is unknown, gated, unreachable or broken; the message says how to get it."""

    status = 503
    code = "model_unavailable"
