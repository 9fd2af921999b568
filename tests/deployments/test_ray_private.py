"""What the service leans on inside Ray: the installed one has it, another one is refused in one sentence."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import FakeAligner, FakeRecognizer, FakeSpeechModel
from ray import ObjectRefGenerator
from ray.serve import context
from ray.serve._private.client import ServeControllerClient
from ray.serve.handle import DeploymentResponseGenerator

from serve_app import proxy
from serve_app.app import graph
from serve_app.cli import CommandFailed, config_file
from serve_app.cli.launcher import running
from serve_app.deployments.calls import ray_private
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings

PACKAGE = Path(proxy.__file__).parent
GENERATOR = r"DeploymentResponseGenerator\._to_object_ref_gen\(\)"
LOADERS = Loaders(FakeSpeechModel, partial(FakeRecognizer, Path("gate")), FakeAligner, None)


def built() -> Any:
    return graph(Settings(model="fake"), LOADERS, "cpu")


class OtherRay:
    async def same(self) -> None:
        """As this Ray's methods that are waited for."""

    async def more(self, timeout_s: float) -> None:
        """With an argument that it must be given."""

    def at_once(self) -> None:
        """No longer waited for."""


@pytest.mark.parametrize(
    ("owner", "name", "other", "missing"),
    [
        (ObjectRefGenerator, "_get_next_ref_n", None, r"ObjectRefGenerator\._get_next_ref_n\(int\)"),
        (ObjectRefGenerator, "_get_next_ref_n", OtherRay.same, r"ObjectRefGenerator\._get_next_ref_n\(int\)"),
        (DeploymentResponseGenerator, "_to_object_ref_gen", None, GENERATOR),
        (DeploymentResponseGenerator, "_to_object_ref_gen", OtherRay.more, GENERATOR),
        (DeploymentResponseGenerator, "_to_object_ref_gen", OtherRay.at_once, GENERATOR),
        (context, "_get_global_client", None, r"_get_global_client\(\)"),
        (ServeControllerClient, "deploy_apps", None, r"ServeControllerClient\.deploy_apps\(schema\)"),
    ],
)
def test_another_ray_is_refused_when_the_graph_is_built(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, other: Any, missing: str
) -> None:
    """Not by the first request, whether a method has gone, takes other arguments or is not awaited."""
    built()
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    if other is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, other)
    sentence = rf"^Ray 2\.61\.0 has no {missing}; this service was tried with Ray 2\.60\.0\.$"
    with pytest.raises(ray_private.UnknownRay, match=sentence):
        built()


def test_another_ray_is_refused_before_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """`whisperx-serve serve` says so in one sentence, at once."""
    monkeypatch.delattr(context, "_get_global_client")
    raw = config_file.read(config_file.DEMO_CONFIG)
    with (
        pytest.raises(CommandFailed, match=r"has no _get_global_client\(\); this service was tried with Ray"),
        running(raw, show_logs=False),
    ):
        pytest.fail("It was started.")


def test_all_private_names_are_checked() -> None:
    """Only ray_private.py uses any of Ray's, and checks them; the patches are off with another Ray."""
    private = re.compile(r"^ *(?:from|import) ray\b.*\._|^ *from ray\b.* import .*\b_[a-z]", re.MULTILINE)
    using = {path for path in PACKAGE.rglob("*.py") if private.search(path.read_text())}
    assert {path.relative_to(PACKAGE).parts[0] for path in using} == {"proxy.py", "ray_patches"}
    used = set(re.findall(r"\.(_[a-z]\w+)\(", Path(ray_private.__file__).read_text()))
    checked = {name.rpartition(".")[2].rpartition(":")[2] for name, _, _ in ray_private.LEANS_ON}
    assert used == {name for name in checked if name.startswith("_")}
    others = {path for path in PACKAGE.rglob("*.py") if path != Path(ray_private.__file__)} - using
    assert not [path for path in others if any(f".{name}(" in path.read_text() for name in used)]


def test_the_ray_it_was_tried_with_is_the_installed_one() -> None:
    """A new version of Ray is to be tried before this is changed."""
    assert ray.__version__ == proxy.TRIED
