"""python -m tools.demo_models: synthesize, train, convert, measure, and write the bundled models."""

import argparse
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import truth
from tools.demo_models import (
    export_recogniser,
    measure,
    train_aligner,
    train_recogniser,
    train_speaker_embedding,
)
from tools.demo_models.batches import Alphabet
from tools.demo_models.conversation import write_conversation
from tools.demo_models.corpus import Corpus, pronounce, write_shard
from tools.demo_models.model_card import write_card
from tools.demo_models.recordings import choice_recordings, write_evaluation_set
from tools.demo_models.synthesis import build_programs
from tools.demo_models.whisper_tokenizer import build_tokenizer, read_ranks

PROCESSES = 2
SHARDS, UTTERANCES_PER_SHARD = 12, 2000
LATEST_CHECKPOINTS = 5  # to choose from
SHARE_OF_RECOGNISER = 0.85  # of the hours; the other two, side by side, need little


def main() -> None:
    options = _options()
    work, bundled, evaluation = Path(options.work), Path(options.bundled), Path(options.evaluation)
    programs, corpus = work / "programs", work / "corpus"
    build_programs(programs)
    synthesize(corpus, programs)
    if not evaluation.exists():
        write_evaluation_set(evaluation, programs)
    _refuse_known_sentences(corpus, evaluation)
    conversation = work / "gettysburg.mp3"
    write_conversation(programs, work)

    small_hours = options.hours * (1 - SHARE_OF_RECOGNISER)
    embedding = work / "speaker_embedding.safetensors"
    _side_by_side(
        (train_aligner.train, (corpus, work / "aligner", small_hours)),
        (train_speaker_embedding.train, (corpus, embedding, small_hours)),
    )
    tokenizer = build_tokenizer(read_ranks())
    alphabet = Alphabet(tokenizer, pronounce(programs))
    plan = train_recogniser.Plan(corpus, work / "checkpoints", options.hours * SHARE_OF_RECOGNISER)
    shutil.rmtree(plan.checkpoints, ignore_errors=True)  # of another training
    _side_by_side(*((train_recogniser.train, (plan, alphabet, rank, PROCESSES)) for rank in range(PROCESSES)))
    checkpoints = sorted(plan.checkpoints.glob("checkpoint-*.pt"))[-LATEST_CHECKPOINTS:]
    chosen = choice_recordings(programs)
    best = measure.choose_checkpoint(checkpoints, tokenizer, chosen, work / "candidate")

    export_recogniser.export(best, tokenizer, bundled / "asr")
    shutil.copytree(work / "aligner", bundled / "aligner", dirs_exist_ok=True)
    shutil.copy(embedding, bundled / "diarization")
    shutil.copy(conversation, bundled)
    shutil.copy(conversation.with_suffix(".json"), bundled)
    rows = measure.measure(bundled / "asr", evaluation, truth.load(bundled / "gettysburg.mp3"))
    write_card(bundled, rows, options.hours)
    print(measure.as_markdown(rows))


def synthesize(corpus: Path, programs: Path) -> None:
    """Write the shards that are not there yet."""
    missing = [seed for seed in range(1, SHARDS + 1) if not (corpus / f"shard-{seed:04d}.json").exists()]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(
            write_shard, [(corpus, UTTERANCES_PER_SHARD, seed, programs) for seed in missing], chunksize=1
        )


def _refuse_known_sentences(corpus: Path, evaluation: Path) -> None:
    """No sentence of the evaluation may have been trained on."""
    known = Corpus(corpus).texts()
    for path in evaluation.rglob("*.json"):
        for text in truth.sentences(path):
            if text in known:
                raise SystemExit(f"{path}: training has heard {text!r}; synthesize with other seeds")


def _side_by_side(*calls: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=run, args=args) for run, args in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("training failed")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.demo_models", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.4, help="to train for, all models together")
    parser.add_argument("--work", default="build/demo_models", help="folder for speech and checkpoints")
    parser.add_argument("--bundled", default="serve_app/bundled", help="folder that gets models and card")
    parser.add_argument("--evaluation", default="benchmarks/recordings", help="what `make eval` measures by")
    return parser.parse_args()


if __name__ == "__main__":
    main()
