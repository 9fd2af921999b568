"""`whisperx-serve transcribe`: audio files, URLs and folders to whisperx's files."""
