"""The Diarizer: whole files, each alone on its device."""

from collections.abc import Callable
from dataclasses import replace

from ray import serve

from serve_app.batching import Batcher
from serve_app.deployments.handles import WHOLE_FILES, AudioRef, audio_behind
from serve_app.deployments.health import Patience, Watch, by_halves, standing_in
from serve_app.deployments.models import PATIENCE
from serve_app.deployments.protocols import DiarizeModel, DiarizeRequest
from serve_app.known_speakers import reference_samples
from serve_app.observability import Retries
from serve_app.options import Options
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, KnownSpeaker

SHORT_S = 60.0  # a file that is no longer does not wait for the speakers of long ones


def _duration_s(request: DiarizeRequest) -> float:
    return len(request[0]) / SAMPLE_RATE_HZ


def _diarize_each(model: DiarizeModel, items: list[DiarizeRequest]) -> list[Diarization]:
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


@serve.deployment(**WHOLE_FILES)
class Diarizer:
    """The whole file to speaker turns.

    One call is a whole file, minutes of work for some, so short files have a thread and a model of their own.
    """

    def __init__(
        self,
        load: Callable[[], DiarizeModel],
        patience: Patience = PATIENCE,
        load_on_cpu: Callable[[], DiarizeModel] | None = None,
    ) -> None:
        self._watch = Watch(patience)
        on_cpu = standing_in(load_on_cpu, _diarize_each)
        self._on_cpu = on_cpu and self._watch.over(on_cpu, _duration_s)
        self._long = self._batcher(load(), "diarize")
        self._short = self._batcher(load(), "diarize-short")

    def _batcher(self, model: DiarizeModel, name: str) -> Batcher[DiarizeRequest, Diarization]:
        return Batcher(
            by_halves(
                self._watch.over(lambda items: _diarize_each(model, items), _duration_s),
                "diarization",
                Retries().note,
                self._on_cpu,
            ),
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
        request = ((await audio_behind(ref)).samples, options, decoded)
        lane = self._short if _duration_s(request) <= SHORT_S else self._long
        return await lane.submit(request, request_id)

    async def check_health(self) -> None:
        self._watch.check()
        self._long.check()
        self._short.check()

    async def ready(self) -> bool:
        return True
