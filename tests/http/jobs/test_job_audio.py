"""The sound of a job: its upload, and the peaks of its waveform."""

from dataclasses import replace
from pathlib import Path

from job_api import ANN, BOB, Service, error_of, using
from transcripts import FIXED


def test_an_upload_is_given_back_as_data(tmp_path: Path) -> None:
    """Byte for byte, to its owner only, and never as something that a browser would show as a page."""

    async def story(service: Service) -> None:
        page = b"<script>alert(1)</script>" * 20_000
        answer = await service.post(files={"file": ("page.html", page, "text/html")}, headers=ANN)
        path = f"{answer.headers['location']}/audio"
        audio = await service.get(path, headers=ANN)
        assert (audio.status_code, audio.content) == (200, page)
        assert audio.headers["content-length"] == str(len(page))
        assert audio.headers["content-type"] == "application/octet-stream"
        assert audio.headers["x-content-type-options"] == "nosniff"
        assert audio.headers["content-disposition"].startswith("attachment")
        assert error_of(await service.get(path, headers=BOB)) == (404, None, "job_not_found")
        head = await service.send("HEAD", path, headers=ANN)
        assert (head.status_code, head.content) == (200, b"")

    using(tmp_path, story, with_keys=True)


def test_what_came_by_url_is_not_kept(tmp_path: Path) -> None:
    """Nor is an upload that has vanished from the spool an error of the server."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        assert error_of(await service.get(f"{path}/audio")) == (404, None, "no_upload")
        path = (await service.post(files={"file": b"audio"})).headers["location"]
        for upload in service.spool.iterdir():
            upload.unlink()
        assert error_of(await service.get(f"{path}/audio")) == (404, None, "no_upload")

    using(tmp_path, story)


def test_peaks_are_those_of_the_transcript(tmp_path: Path) -> None:
    """Once there is one."""

    async def story(service: Service) -> None:
        path = await service.finished(replace(FIXED, peaks="AAF/gA=="))
        assert (await service.get(f"{path}/peaks")).json() == {"per_second": 20, "peaks": "AAF/gA=="}
        path = await service.submitted()
        assert error_of(await service.get(f"{path}/peaks")) == (409, None, "job_not_finished")

    using(tmp_path, story)
