"""The command line: transcribes files, checks a config file, runs the service on a separate Ray."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ConfigPath = Annotated[Path, typer.Argument(help="Config file of the service, such as serve_config.yaml.")]

note = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

# For commands that lack the server's packages; no package index has this project.
INSTALL = "pip install '.[server]' in a checkout, or 'FILE.whl[server]'"

GRACE_S = 30.0  # how long running requests may take to end after SIGTERM


class CommandFailed(Exception):
    """A command cannot work; the message is one sentence that says why."""

    exit_code = 1
