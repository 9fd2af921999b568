"""Samples to windows of speech: voice activity detection."""
