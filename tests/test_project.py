"""The project as a whole: what is written in one place agrees with what is written in another."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from serve_app import deployments
from serve_app.options import Options
from serve_app.settings import Settings

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            names += setting_names(nested, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def test_every_setting_is_in_the_readme() -> None:
    """The configuration table has a row for each setting, and none that does not exist."""
    rows = [line.split("`")[1] for line in README.splitlines() if line.startswith("| `")]
    settings = setting_names(Settings)
    assert [name for name in settings if name not in rows] == []
    assert [row for row in rows if row not in [*settings, *Options.model_fields]] == []


def test_every_option_is_in_the_readme() -> None:
    """So has the table of request options."""
    assert [name for name in Options.model_fields if f"| `{name}` |" not in README] == []


@pytest.mark.parametrize("name", ["serve_config.yaml", "serve_config.demo.yaml"])
def test_the_config_files_name_deployments_that_exist(name: str) -> None:
    """An unknown name would keep the graph from starting."""
    for application in yaml.safe_load((PROJECT / name).read_text())["applications"]:
        names = {deployment["name"] for deployment in application.get("deployments", ())}
        assert names <= set(deployments.USER_CONFIGS)


@pytest.mark.parametrize(
    "module",
    [
        "serve_app.app",
        "serve_app.__main__",
        "serve_app.deployments",
        "serve_app.stages.alignment.aligner",
        "serve_app.stages.diarization.diarizer",
        "serve_app.stages.speech.detector",
    ],
)
def test_importing_does_not_load_model_packages(module: str) -> None:
    """The ingress, the loader and the launcher stay small: models are imported where they run."""
    heavy = "torch, whisperx, pyannote, ctranslate2, transformers, nltk"
    code = f"import sys, {module}\nprint([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert done.stdout.strip() == "[]"


def test_no_file_names_a_registry_or_this_machine() -> None:
    """Pins have hashes and no addresses."""
    lock = (PROJECT / "requirements.lock").read_text()
    assert "://" not in lock
    pins = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    assert lock.count("--hash=") >= len(pins)
