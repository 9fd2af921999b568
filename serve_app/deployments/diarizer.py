"""The deployment that tells speakers apart: whole files, one after the other."""

from collections.abc import Callable
from dataclasses import replace

from ray import serve

from serve_app.deployments.calls.audio_ref import joined
from serve_app.deployments.replica import OPTIONS, ModelReplica
from serve_app.deployments.watchdog import CallTimeout
from serve_app.request.calls import DiarizeCall
from serve_app.stages.diarization.diarizer import DiarizationModel
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, KnownSpeaker, Samples, SpeakerBounds

SHORT_S = 60.0  # a file of at most this length does not wait for the speakers of longer ones

Request = tuple[list[Samples], SpeakerBounds, tuple[KnownSpeaker, ...]]  # the file's parts; clips as samples


def _length_s(request: Request) -> float:
    return sum(map(len, request[0])) / SAMPLE_RATE_HZ


# Clustering hours of audio keeps every other thread of its process waiting, for up to a minute.
@serve.deployment(**OPTIONS | {"health_check_timeout_s": 120.0})
class Diarizer(ModelReplica):
    """Whole files to speaker turns.

    One call takes minutes for some files, so short files have a thread and a model of their own.
    """

    def __init__(
        self,
        load: Callable[[], DiarizationModel],
        timeout: CallTimeout = CallTimeout(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__("diarization", timeout)
        self._long, self._short = (
            self._batcher(_run(self._loaded(load)), _length_s, name=name) for name in ("long", "short")
        )

    async def diarize(self, call: DiarizeCall) -> Diarization:
        """Finds the turns of one file."""
        known = tuple([replace(speaker, clip=await speaker.clip.samples()) for speaker in call.known])
        request = (await call.audio.arrays(), call.bounds, known)
        batcher = self._short if _length_s(request) <= SHORT_S else self._long
        found: Diarization = await batcher.submit(request, call.request_id)
        return found


def _run(model: DiarizationModel) -> Callable[[list[Request]], list[Diarization]]:
    """A file's parts are joined only here, on the model's thread: hours of audio take seconds to copy."""
    return lambda requests: [
        model.diarize(joined(parts), bounds=bounds, known=known) for parts, bounds, known in requests
    ]
