"""What the service leans on inside Ray: the installed one has it, another one is refused in one sentence."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import FakeAligner, FakeRecognizer, FakeSpeechModel
from ray import ObjectRefGenerator
from ray.serve.handle import DeploymentResponseGenerator

from serve_app import proxy
from serve_app.app import graph
from serve_app.deployments.calls import ray_private
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings

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
    ],
)
def test_another_ray_is_refused_when_the_graph_is_built(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, other: Any, missing: str
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


def test_the_ray_it_was_tried_with_is_the_installed_one() -> None:
    """A new version of Ray is to be tried before this is changed."""
    assert ray.__version__ == proxy.TRIED
