"""The deployment that tells speakers apart: whole files, one after the other."""

from collections.abc import Callable
from dataclasses import replace

from ray import serve

from serve_app.batching.batcher import Batcher
from serve_app.deployments.calls.handles import WHOLE_FILES, AudioLost, AudioRef, audio_behind
from serve_app.deployments.metrics import Retries
from serve_app.deployments.protocols import DiarizeModel, DiarizeRequest
from serve_app.deployments.watchdog import Patience, Watch, by_halves
from serve_app.options import Options
from serve_app.request.known_speakers import reference_samples
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, KnownSpeaker

PATIENCE = Patience()
SHORT_S = 60.0  # a file that is no longer does not wait for the speakers of long ones


def _duration_s(request: DiarizeRequest) -> float:
    return len(request[0]) / SAMPLE_RATE_HZ


@serve.deployment(**WHOLE_FILES)
class Diarizer:
    """The whole file to speaker turns.

    One call is a whole file, minutes of work for some, so short files have a thread and a model of their own.
    """

    def __init__(self, load: Callable[[], DiarizeModel], patience: Patience = PATIENCE) -> None:
        self._watch = Watch(patience)
        self._long = self._batcher(load(), "diarize")
        self._short = self._batcher(load(), "diarize-short")

    def _batcher(self, model: DiarizeModel, name: str) -> Batcher[DiarizeRequest, Diarization]:
        def run(items: list[DiarizeRequest]) -> list[Diarization]:
            return [
                model.diarize(
                    samples,
                    num_speakers=options.num_speakers,
                    min_speakers=options.min_speakers,
                    max_speakers=options.max_speakers,
                    known=known,
                )
                for samples, options, known in items
            ]

        return Batcher(
            by_halves(self._watch.over(run, _duration_s), "diarization", Retries().note),
            max_batch_size=1,
            name=name,
        )

    async def diarize(
        self, ref: AudioRef, options: Options, request_id: str, known: tuple[KnownSpeaker, ...] = ()
    ) -> Diarization:
        """The clips of `known` are references to audio; what is wrong with one is raised first."""
        clips = [
            await reference_samples(audio_behind(speaker.clip), number)
            for number, speaker in enumerate(known)
        ]
        decoded = tuple(replace(speaker, clip=clip) for speaker, clip in zip(known, clips, strict=True))
        if not (audio := await audio_behind(ref)).whole:
            raise AudioLost("only its beginning is there")
        request = (audio.samples, options, decoded)
        lane = self._short if _duration_s(request) <= SHORT_S else self._long
        return await lane.submit(request, request_id)

    async def check_health(self) -> None:
        self._watch.check()
        self._long.check()
        self._short.check()

    async def ready(self) -> bool:
        return True
