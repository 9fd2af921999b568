"""The command line: a local Ray, the strict config file, the demo."""
