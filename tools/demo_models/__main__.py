"""python -m tools.demo_models: synthesize, train, convert, measure, and write the bundled models."""

import argparse
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tools.demo_models.synthesis import build_programs
from tools.demo_models.whisper_tokenizer import build_tokenizer, read_ranks

PROCESSES = 2
SHARDS, UTTERANCES_PER_SHARD = 8, 2500
CHOICE_SEED, REPORT_SEED = 101, 202
LATEST_CHECKPOINTS = 8  # to choose from
SHARE_OF_RECOGNISER = 0.8  # of the hours; the aligner and the embedding need little
SHARE_OF_ALIGNER = 0.15


def main() -> None:
    options = _options()
    work, bundled = Path(options.work), Path(options.bundled)
    programs, recordings = work / "programs", work / "recordings"
    build_programs(programs)
    synthesize(work / "corpus", programs)
    known = Corpus(work / "corpus").texts()
    if not recordings.exists():
        measure.make_recordings("choice", CHOICE_SEED, programs, known, recordings)
        measure.make_recordings("report", REPORT_SEED, programs, known, recordings)
        write_conversation(programs, recordings)
    tokenizer = build_tokenizer(read_ranks())
    alphabet = Alphabet(tokenizer, pronounce(programs))

    plan = train_recogniser.Plan(
        corpus=work / "corpus",
        checkpoints=work / "checkpoints",
        hours=options.hours * (SHARE_OF_RECOGNISER if options.all else 1),
        begin=options.begin,
        initial=options.initial,
    )
    _in_processes(train_recogniser.train, [(plan, alphabet, rank, PROCESSES) for rank in range(PROCESSES)])
    checkpoints = sorted(plan.checkpoints.glob("checkpoint-*.pt"))[-LATEST_CHECKPOINTS:]
    best = measure.choose_checkpoint(checkpoints, tokenizer, recordings, work / "candidate")
    export_recogniser.export(best, tokenizer, bundled / "asr")
    if options.all:
        train_aligner.train(work / "corpus", bundled / "aligner", options.hours * SHARE_OF_ALIGNER)
        embedding = bundled / "diarization" / "speaker_embedding.safetensors"
        train_speaker_embedding.train(
            work / "corpus", embedding, options.hours * (1 - SHARE_OF_RECOGNISER - SHARE_OF_ALIGNER)
        )
    shutil.copy(recordings / "gettysburg.mp3", bundled)
    rows = measure.measure(bundled / "asr", recordings, recordings)
    write_card(bundled, rows, f"Trained with `python -m tools.demo_models` for {options.hours:g} hours.")
    print(measure.as_markdown(rows))


def synthesize(corpus: Path, programs: Path) -> None:
    """Write the shards that are not there yet."""
    missing = [seed for seed in range(1, SHARDS + 1) if not (corpus / f"shard-{seed:04d}.json").exists()]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(
            write_shard, [(corpus, UTTERANCES_PER_SHARD, seed, programs) for seed in missing], chunksize=1
        )


def _in_processes(run: Callable[..., None], calls: list[tuple[Any, ...]]) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=run, args=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("training failed")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.demo_models", description=__doc__)
    parser.add_argument("--hours", type=float, default=5, help="to train for, all models together")
    parser.add_argument("--work", default="build/demo_models", help="folder for speech and checkpoints")
    parser.add_argument(
        "--bundled", default="serve_app/bundled", help="folder that gets the models and their card"
    )
    parser.add_argument("--initial", type=Path, help="checkpoint of a recogniser to go on from")
    parser.add_argument(
        "--begin", type=float, default=0.0, help="share of the training that --initial has behind it"
    )
    parser.add_argument(
        "--recogniser-only", dest="all", action="store_false", help="keep the other two models"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
