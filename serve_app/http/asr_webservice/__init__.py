"""whisper-asr-webservice's API over the same requests."""
