"""WhisperX as a Ray Serve graph: audio in, timed and speaker-labelled segments out."""

__version__ = "0.1.0"
