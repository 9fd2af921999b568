"""Texts that PostgreSQL cannot hold are refused or harmless in every field, never a 500."""

import json
from pathlib import Path
from typing import Any

import pytest
from job_api import URL, Service, using

HOOK = "https://example.com/hook"


@pytest.mark.parametrize("odd", [*map(chr, (0x00, 0x1B, 0xD800, 0xDC80))])
@pytest.mark.usefixtures("each_store")
def test_odd_texts(odd: str, tmp_path: Path) -> None:
    """A job that is stored can be claimed and shown."""
    fields: list[dict[str, Any]] = [
        {"audio_file": f"{URL}{odd}"},
        {"audio_file": f"{URL}?{odd}"},
        {"audio_file": f"{URL}#{odd}"},
        {"webhook_url": f"{HOOK}{odd}"},
        {"webhook_url": f"{HOOK}?{odd}"},
        {"webhook_url": f"{HOOK}#{odd}"},
        {"headers": {"X-A": odd}},
        {"headers": {odd: "a"}},
        {"language": odd},
        {"initial_prompt": odd},
        {"hotwords": odd},
        {"known_speaker_names": [odd]},
        {odd: "a"},
    ]

    async def story(service: Service) -> None:
        for each in fields:
            body = json.dumps({"audio_file": URL, **each})
            answer = await service.post(content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in {201, 400}, (each, answer.text)
        for key in (b"a\0", b"\xff", b"\x1b"):
            headers = [(b"Idempotency-Key", key)]
            answer = await service.post(json={"audio_file": URL}, headers=headers)
            assert answer.status_code == 400, (key, answer.text)
        for path in ("/v1/jobs/%00", "/v1/jobs/%00/result", "/v1/jobs/%ED%A0%80"):
            assert (await service.get(path)).status_code == 404
        listed = (await service.get("/v1/jobs?limit=100")).json()["jobs"]
        for job in listed:
            held = await service.claimed()
            assert (await service.jobs.request(held.job.id, held.job.key)).audio.startswith("https:")
            assert (await service.get(f"/v1/jobs/{job['id']}")).status_code == 200

    using(tmp_path, story)
