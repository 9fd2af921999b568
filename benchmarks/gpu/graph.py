"""The whole graph on the device, by Ray, with the demo's recording."""

import time
from typing import Any

import psutil

from benchmarks import people
from benchmarks.gpu.stages import Check, NotPossible, real_model
from serve_app.transcript import SAMPLE_RATE_HZ

TINY_S = 12


def whole_graph(check: Check) -> None:
    """Starts the demo's service on the device and sends it the sample, twice: cold and warm."""
    if missing := [name for name in ("base", "campplus") if real_model(name) is None]:
        raise NotPossible(
            f"there are no weights of {', '.join(missing)}: python -m serve_app prefetch base speakers"
        )
    if any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        raise NotPossible("a Ray runs on this machine")
    import httpx

    from benchmarks.systems import service, wav
    from serve_app.cli import config_file
    from serve_app.cli.launcher import free_port

    raw: dict[str, Any] = config_file.read(config_file.DEMO_CONFIG)
    raw["http_options"] = {**(raw.get("http_options") or {}), "port": free_port()}
    raw["applications"][0]["args"] |= {"device": check.device, "jobs": {"store": "off"}}
    [recording] = people.packaged()
    samples = recording.samples[: TINY_S * SAMPLE_RATE_HZ] if check.is_tiny else recording.samples
    begun_s = time.monotonic()
    with service(raw, num_cpus=4) as system:
        check.report("graph: until it is ready", time.monotonic() - begun_s, "s")
        for name in ("first request", "second request"):
            begun_s = time.monotonic()
            response = httpx.post(
                f"{system.url}/predict",
                files={"file": wav(samples)},
                data={"word_timestamps": "true", "diarize": "true", "language": "en"},
                timeout=600,
            )
            response.raise_for_status()
            check.report(
                f"graph: {name} of {len(samples) / SAMPLE_RATE_HZ:.0f} s", time.monotonic() - begun_s, "s"
            )
    body = response.json()
    words = [word for segment in body["model_output"] for word in segment.get("words", ())]
    check.report("graph: words with times", sum("start" in word for word in words), at_least=1)
    speakers = {segment.get("speaker") for segment in body["model_output"]} - {None}
    check.report("graph: speakers", len(speakers), at_least=1)
    check.report("graph: warnings", len(body["warnings"]), at_most=0)
