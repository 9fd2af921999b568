"""Texts to word times: wav2vec2 and a forced alignment in numpy."""
