"""`whisperx-serve doctor`: checks this machine for a config file, before the service starts on it."""
