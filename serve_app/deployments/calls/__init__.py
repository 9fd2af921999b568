"""Calls between deployments that survive killed replicas and lost audio."""
