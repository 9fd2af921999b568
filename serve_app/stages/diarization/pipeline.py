"""pyannote's pipeline: ours around CAM++, or another one in a directory or from the hub."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from serve_app.errors import ModelUnavailable

PYANNOTE = "4.0.7"  # whose inside `embeddings` and `limit_clusters` know
CAMPPLUS = "campplus.pt"  # in a directory that is a model


def load_pipeline(model: str, *, device: str, token: str | None) -> Any:
    """pyannote's pipeline, nothing of it made cheaper: from a directory or the hub.

    A directory holds campplus.pt, or config.yaml and the models that it names. `device` is "cpu" or "cuda",
    `token` HF_TOKEN's value. Raises ModelUnavailable with one sentence that says what to do. All files but
    campplus.pt are pickles: do not load them unless you trust them.
    """
    if (installed := metadata.version("pyannote.audio")) != PYANNOTE:
        raise _unavailable(
            f"pyannote.audio {installed} is installed; install pyannote.audio {PYANNOTE}, since parts inside "
            "it are replaced here."
        )
    import torch

    from serve_app.stages.torch_support import import_pyannote

    import_pyannote()
    from pyannote.audio import Pipeline
    from pyannote.audio.pipelines import SpeakerDiarization

    try:
        if (weights := Path(model) / CAMPPLUS).is_file():
            pipeline = _campplus_pipeline(weights)
        else:
            pipeline = Pipeline.from_pretrained(model, token=token)
        if not isinstance(pipeline, SpeakerDiarization):
            raise TypeError(f"a {type(pipeline).__name__} is no SpeakerDiarization")
        pipeline.legacy = False  # it would leave out the exclusive turns and the embeddings
        pipeline.to(torch.device(device))
    except Exception as error:
        here = f"The diarization model {model!r}"
        if isinstance(error, OSError) and not Path(model).exists():  # of the network, the hub or its cache
            gated = re.search(r"https://[^/\s]+/([^/\s]+/[^/\s]+)/resolve/", str(error))  # may be only a part
            page = f"https://huggingface.co/{gated[1] if gated else model}"
            remedy = "check HF_TOKEN" if token else "set HF_TOKEN to a token of huggingface.co"
            raise _unavailable(
                f"{here} could not be downloaded: check its name and the network, {remedy} and accept the "
                f"conditions on {page} as the token's owner, or name a directory."
            ) from error
        reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        message = f"{here} could not be loaded ({reason}); check its name, files and versions."
        raise _unavailable(message) from error
    return pipeline


def _campplus_pipeline(weights: Path) -> Any:
    """pyannote's pipeline around the segmentation model in the whisperx wheel and CAM++."""
    from pyannote.audio import Model
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines import SpeakerDiarization

    from serve_app.stages.diarization.campplus import load_campplus
    from serve_app.stages.torch_support import WHISPERX_SEGMENTATION

    pipeline = SpeakerDiarization(
        segmentation=Model.from_pretrained(WHISPERX_SEGMENTATION),
        embedding=load_campplus(weights),
        embedding_exclude_overlap=True,
        plda=PLDA.__new__(PLDA),  # unused by this clustering; the default asks a gated hub repository
        clustering="AgglomerativeClustering",
    )
    pipeline.instantiate(
        {
            "segmentation": {"threshold": 0.5, "min_duration_off": 0.0},
            # Diarization error rates (no collar, overlap counted) of pyannote's sample and of nine excerpts
            # of AMI meetings are 5.3 and 25.8 % for thresholds of 0.70 to 0.80, 5.3 and 27.8 % up to 0.95,
            # and 21 and 37 % at 0.65.
            "clustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.8},
        }
    )
    filter_embeddings = pipeline.clustering.filter_embeddings

    def long_enough(embeddings: Any, segmentations: Any) -> Any:
        """What to cluster: voices that speak alone for 2 s of a window of 5 s, or for 1 s if there are none.

        With 1 s, as pyannote has it, four times its own sample of two voices in one file are three or four
        voices, or one for thresholds from 0.9 on.
        """
        usable = filter_embeddings(embeddings, segmentations, min_active_ratio=0.4)
        return usable if len(usable[0]) else filter_embeddings(embeddings, segmentations)

    vars(pipeline.clustering)["filter_embeddings"] = long_enough
    return pipeline


def limit_clusters(pipeline: Any) -> None:
    """Makes `pipeline` ask for no more speakers than it has embeddings to cluster.

    Only the pipeline knows how many, between embedding and clustering. pyannote 4.0.7's default
    clustering asks KMeans all the same: "n_samples=3 should be >= n_clusters=8"; the other one does not.
    """
    if pipeline.klustering != "VBxClustering":
        return
    clustering: Any = pipeline.clustering

    def limited(embeddings: Any, *, num_clusters: int | None, min_clusters: int, **others: Any) -> Any:
        usable, _, _ = clustering.filter_embeddings(embeddings, segmentations=others["segmentations"])
        most = max(1, len(usable))
        wanted = num_clusters and min(num_clusters, most)
        return clustering(embeddings, num_clusters=wanted, min_clusters=min(min_clusters, most), **others)

    vars(pipeline)["clustering"] = limited  # found before pyannote's own attribute of that name


def _unavailable(message: str) -> ModelUnavailable:
    return ModelUnavailable(message, None, "diarization_unavailable")
