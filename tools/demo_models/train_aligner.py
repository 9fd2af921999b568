"""Train the aligner: a small Wav2Vec2ForCTC over letters, as `whisperx.load_align_model` takes it."""

import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from tools.demo_models.corpus import Corpus
from tools.demo_models.windows import Window, compose_window

CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz", "'"]
NUMBER = {character: number for number, character in enumerate(CHARACTERS)}
BLANK, BETWEEN_WORDS = NUMBER["<pad>"], NUMBER["|"]
FRAMES_PER_S = 50
WINDOW_S = (2.5, 4, 6, 8)
SPEECH_PER_STEP_S = 24
RATE, LOWEST_RATE, WARM_UP_STEPS = 2e-3, 1e-5, 100
BLANK_WEIGHT = 0.3  # most frames are blank
IGNORED = -100


def train(corpus_folder: Path, out: Path, hours: float) -> None:
    """Train for `hours` on one thread and write model and processor into `out`."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rng = random.Random(1)
    corpus = Corpus(corpus_folder)
    model = Wav2Vec2ForCTC(_configuration()).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    weight = torch.ones(len(CHARACTERS))
    weight[BLANK] = BLANK_WEIGHT
    started, step, clock = time.monotonic(), 0, 0.0
    while clock < 1:
        clock = (time.monotonic() - started) / 3600 / hours
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / WARM_UP_STEPS)
            group["lr"] = RATE * warm * (0.5 + 0.5 * math.cos(math.pi * min(1, clock))) + LOWEST_RATE
        longest = rng.choice(WINDOW_S)
        windows = [compose_window(corpus, rng, longest) for _ in range(round(SPEECH_PER_STEP_S / longest))]
        scores = model(_pad([torch.from_numpy(w.samples) for w in windows])).logits.log_softmax(-1)
        loss = _sequence_loss(scores, windows) + _frame_loss(scores, windows, weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"aligner step {step} at {clock:.3f}: loss {float(loss.detach()):.3f}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(out)
    _processor(out).save_pretrained(out)


def _configuration() -> Wav2Vec2Config:
    return Wav2Vec2Config(
        vocab_size=len(CHARACTERS), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=320, conv_dim=(48, 64, 64, 64, 96, 96, 128), conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2), num_conv_pos_embeddings=33, num_conv_pos_embedding_groups=4,
        # whisperx hands over the waveform as it is: statistics over time make the model deaf to its level
        feat_extract_norm="group", hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0,
        activation_dropout=0.0, final_dropout=0.0, layerdrop=0.0, mask_time_prob=0.0,
        apply_spec_augment=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _processor(folder: Path) -> Wav2Vec2Processor:
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps(NUMBER))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(vocabulary), unk_token="<unk>", pad_token="<pad>", word_delimiter_token="|", do_lower_case=True
    )
    extractor = Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=16_000,
        padding_value=0.0,
        do_normalize=False,
        return_attention_mask=False,
    )
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)


def _pad(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _sequence_loss(scores: Tensor, windows: list[Window]) -> Tensor:
    letters = [[NUMBER[c] for c in "|".join(word.word for word in window.words)] for window in windows]
    targets = torch.tensor([number for row in letters for number in row])
    lengths = torch.tensor([len(row) for row in letters])
    frames = torch.full((len(windows),), scores.shape[1])
    return functional.ctc_loss(
        scores.transpose(0, 1), targets, frames, lengths, blank=BLANK, zero_infinity=True
    )


def _frame_loss(scores: Tensor, windows: list[Window], weight: Tensor) -> Tensor:
    labels = np.stack([_frame_labels(window, scores.shape[1]) for window in windows])
    return functional.nll_loss(
        scores.flatten(0, 1), torch.from_numpy(labels).flatten(), weight=weight, ignore_index=IGNORED
    )


def _frame_labels(window: Window, frames: int) -> np.ndarray:
    """Where letters should peak, (frames,).

    whisperx lets a letter last until the next one comes, and ends a segment's last word at its last letter:
    so the first letter belongs to the word's start, the last close to its end, and blank to the pauses.
    """
    labels = np.full(frames, IGNORED, np.int64)
    spoken = 0
    for word in window.words:
        first, last = round(word.start * FRAMES_PER_S), round(word.end * FRAMES_PER_S)
        labels[spoken + 2 : max(spoken + 2, first - 1)] = BLANK
        if first >= frames:
            break
        if len(word.word) > 1 and first < last - 2 < frames:
            labels[last - 2] = NUMBER[word.word[-1]]
        labels[first] = NUMBER[word.word[0]]
        if word is not window.words[-1] and last < frames:
            labels[last] = BETWEEN_WORDS
        spoken = last
    labels[spoken + 2 :] = BLANK
    return labels
