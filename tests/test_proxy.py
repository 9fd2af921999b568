"""The patches of Serve are on where the variable says so and Ray is the one that they were tried on."""

import logging
from importlib import import_module
from typing import Any

import pytest
import ray

from serve_app import proxy
from serve_app.ray_patches.body_queues import BoundedQueue, BoundedReceive
from serve_app.ray_patches.http10 import EndWithConnection
from serve_app.ray_patches.proxy_errors import RewriteServe503

serves_proxy: Any = import_module("ray.serve._private.proxy")


@pytest.fixture(autouse=True)
def before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve's queue, which is put back afterwards."""
    monkeypatch.setattr(serves_proxy, "MessageQueue", serves_proxy.MessageQueue)
    monkeypatch.setenv(proxy.PROXY_HOOK, proxy.AT_PROXY_START)
    return serves_proxy.MessageQueue


def test_the_installed_ray_is_patched() -> None:
    """In the proxy and in the Ingress."""
    middlewares: list[Any] = [*proxy.at_start(), *proxy.ingress_middlewares()]
    classes = [RewriteServe503, EndWithConnection, BoundedReceive]
    assert [middleware.cls for middleware in middlewares] == classes
    assert serves_proxy.MessageQueue is BoundedQueue


def test_another_ray_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, before: Any
) -> None:
    """The proxy and the Ingress start without the patches, and the log says so."""
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    assert proxy.at_start() == proxy.ingress_middlewares() == []
    assert serves_proxy.MessageQueue is before
    assert "the patches of Serve are off" in caplog.text


def test_the_ingress_does_its_half_only_where_the_proxy_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the variable says."""
    monkeypatch.delenv(proxy.PROXY_HOOK)
    assert proxy.ingress_middlewares() == []
