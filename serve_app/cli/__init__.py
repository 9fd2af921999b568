"""The command line: checks a config file, runs the service on a Ray of its own, fetches models."""

from rich.console import Console

note = Console(stderr=True, highlight=False, soft_wrap=True)
