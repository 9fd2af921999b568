"""The peaks of the waveform of a job's audio."""

from dataclasses import replace
from pathlib import Path

from job_api import Service, error_of, using
from transcripts import FIXED


def test_peaks_are_those_of_the_transcript(tmp_path: Path) -> None:
    """Once there is one."""

    async def story(service: Service) -> None:
        path = await service.finished(replace(FIXED, peaks="AAF/gA=="))
        assert (await service.get(f"{path}/peaks")).json() == {"per_second": 20, "peaks": "AAF/gA=="}
        path = await service.submitted()
        assert error_of(await service.get(f"{path}/peaks")) == (409, None, "job_not_finished")

    using(tmp_path, story)
