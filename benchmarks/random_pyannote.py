"""pyannote's parts at their true sizes with random weights, in the layout of its hub repositories."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch


def save_plda(directory: Path, dimension: int, lda_dimension: int) -> None:
    """The two files of a PLDA for embeddings of that dimension."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True)
    lda = rng.normal(size=(dimension, lda_dimension)) / dimension**0.5
    np.savez(
        directory / "xvec_transform.npz", mean1=np.zeros(dimension), mean2=np.zeros(lda_dimension), lda=lda
    )
    spread = np.linspace(2, 1, lda_dimension)
    np.savez(directory / "plda.npz", mu=np.zeros(lda_dimension), tr=np.eye(lda_dimension), psi=spread)


def save_model(model: Any, specifications: Any, directory: Path) -> None:
    """One model as pyannote's checkpoints are: pytorch_model.bin in a directory of its own."""
    directory.mkdir(parents=True)
    model.specifications = specifications
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, directory / "pytorch_model.bin")


def save_community_1(directory: Path) -> None:
    """PyanNet (powerset, 10 s), WeSpeaker ResNet34, PLDA and VBx.

    Only the last layer of the segmentation is not random: it is biased to "the first speaker alone",
    so that there is somebody to embed.
    """
    # pyannote warns while it is imported, which only a running test can say is expected
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    torch.manual_seed(0)
    segmentation = PyanNet(
        sincnet={"stride": 10}, lstm={"hidden_size": 128, "num_layers": 4, "bidirectional": True}
    )
    speech = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=10.0,
        classes=["speaker#1", "speaker#2", "speaker#3"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    segmentation.specifications = speech
    segmentation.setup()  # adds the classifier
    with torch.no_grad():
        segmentation.classifier.bias[1] += 5
    save_model(segmentation, speech, directory / "segmentation")
    _save_pipeline(
        directory,
        {"clustering": "VBxClustering", "segmentation": "$model/segmentation"},
        {
            "clustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
            "segmentation": {"min_duration_off": 0.0},
        },
    )


def save_with_real_segmentation(directory: Path) -> None:
    """The segmentation in the whisperx wheel (5 s, trained), WeSpeaker ResNet34, agglomerative clustering."""
    torch.manual_seed(0)
    _save_pipeline(
        directory,
        {"clustering": "AgglomerativeClustering", "segmentation": str(whisperx_segmentation())},
        {
            # 3.1 has 0.7, but random embeddings lie closer together
            "clustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.1},
            "segmentation": {"threshold": 0.5, "min_duration_off": 0.0},
        },
    )


def small_pipeline(vbx_in: Path | None = None) -> Any:
    """whisperx's segmentation, a small WeSpeaker and 3.1's clustering, or VBx with its PLDA in a folder."""
    from pyannote.audio import Model
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines import SpeakerDiarization

    if vbx_in is None:
        plda = PLDA.__new__(PLDA)  # unused; the default asks a gated hub repository
        clustering = "AgglomerativeClustering"
        parameters: dict[str, Any] = {"method": "centroid", "min_cluster_size": 2, "threshold": 0.01}
    else:
        save_plda(vbx_in / "plda", 64, 32)
        plda, clustering = PLDA.from_pretrained(vbx_in / "plda"), "VBxClustering"
        parameters = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}
    pipeline = SpeakerDiarization(
        segmentation=Model.from_pretrained(whisperx_segmentation()),
        segmentation_batch_size=8,
        embedding=small_wespeaker(),
        embedding_batch_size=8,
        plda=plda,
        clustering=clustering,
    )
    segmentation = {"threshold": 0.5, "min_duration_off": 0.0}
    return pipeline.instantiate({"segmentation": segmentation, "clustering": parameters})


def small_wespeaker() -> Any:
    """A WeSpeaker of a twentieth of ResNet34's size, with the same random weights at every call."""
    from pyannote.audio.models.embedding import WeSpeakerResNet34
    from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model = WeSpeakerResNet34()
    model.resnet = ResNet(BasicBlock, [1, 1, 1, 1], 8, 80, 64, two_emb_layer=False)
    return model.eval()


def whisperx_segmentation() -> Path:
    """The checkpoint that the whisperx wheel brings."""
    package = find_spec("whisperx")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "assets" / "pytorch_model.bin"


def _save_pipeline(directory: Path, parts: dict[str, str], parameters: dict[str, Any]) -> None:
    """config.yaml around `parts`, a random ResNet34 and a random PLDA; batches as community-1 has them."""
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34

    voice = Specifications(problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=10.0)
    save_model(WeSpeakerResNet34(), voice, directory / "embedding")
    save_plda(directory / "plda", 256, 128)
    common = {
        "segmentation_batch_size": 32,
        "embedding": "$model/embedding",
        "embedding_batch_size": 32,
        "embedding_exclude_overlap": True,
        "plda": "$model/plda",
    }
    config = {
        "dependencies": {"pyannote.audio": "4.0.0"},
        "pipeline": {"name": "pyannote.audio.pipelines.SpeakerDiarization", "params": {**parts, **common}},
        "params": parameters,
    }
    (directory / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
