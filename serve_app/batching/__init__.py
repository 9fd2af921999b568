"""Batches for one device, cut when it is free and fair to all requests."""
