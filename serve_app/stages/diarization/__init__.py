"""A whole file to speaker turns: pyannote."""
