"""What `cpu_when_gpu_is_full` builds on a cluster that says it has a GPU."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.app import CPU_PER_AUDIO_S, build
from serve_app.settings import Settings
from serve_app.transcript import AsrRequest, Decoding

FOR_A_GPU: dict[str, Any] = {
    "model": "bundled",
    "call_timeout_per_audio_s": 2.0,
    "asr": {"compute_type": "float16", "threads": 1},
    "alignment": {"max_padded_s": 60, "compute_type": "float16", "threads": 1},
    "diarization": {"batch_windows": 64, "compute_type": "float16", "threads": 1},
}


def built(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    cluster = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"GPU": 1.0})
    monkeypatch.setattr("serve_app.app.ray", cluster)
    application: Any = build(Settings(**FOR_A_GPU, **settings))
    return application._bound_deployment


def test_what_stands_in_needs_no_gpu_and_takes_nothing_meant_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recogniser works on a CPU although the GPU's numbers (float16) do not exist there."""
    *stages, patience = built(monkeypatch, cpu_when_gpu_is_full=True).init_kwargs["spare"]
    bound = [stage._bound_deployment for stage in stages]
    assert [stage.name for stage in bound] == ["TranscriberOnCpu", "AlignerOnCpu", "DiarizerOnCpu"]
    for stage in bound:
        options = stage.ray_actor_options
        assert "num_gpus" not in options
        env_vars = options["runtime_env"]["env_vars"]
        assert env_vars["CUDA_VISIBLE_DEVICES"] == ""
        assert ("GLIBC_TUNABLES" in env_vars) == (stage.name != "DiarizerOnCpu")
        assert options["num_cpus"] == 0
    assert patience.per_audio_s == CPU_PER_AUDIO_S
    aligner, diarizer = (stage.init_args[0]() for stage in bound[1:])
    acoustic = aligner.load("en").acoustic
    assert (acoustic._max_padded, acoustic._precision.dtype) == (0, None)
    assert diarizer._pipeline.segmentation_batch_size < FOR_A_GPU["diarization"]["batch_windows"]
    load, *_ = bound[0].init_args
    recognizer = load()
    silence = AsrRequest(recognizer.features(np.zeros(16_000, np.int16)), "en", Decoding())
    assert recognizer.transcribe([silence])[0].language == "en"


def test_nothing_stands_in_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost nothing, but a stage that is slow without a word is worse than one that says why."""
    assert built(monkeypatch).init_kwargs["spare"] is None
