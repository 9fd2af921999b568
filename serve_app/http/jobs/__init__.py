"""Durable jobs over HTTP: our own API, and those of others in front of the same rows."""
