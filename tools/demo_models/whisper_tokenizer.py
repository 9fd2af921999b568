"""Whisper's multilingual tokenizer for Hugging Face, made from the ranks that openai-whisper ships."""

import base64
import importlib.util
import itertools
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# Whisper numbers its languages in this order; it is not the alphabet's.
_LANGUAGES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la
mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be
tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
"""
LANGUAGES = _LANGUAGES.split()
SPECIALS = [
    "<|endoftext|>", "<|startoftranscript|>", *(f"<|{language}|>" for language in LANGUAGES),
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip
TIMESTAMPS = [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
VOCABULARY_SIZE = 51_865


def read_ranks() -> dict[bytes, int]:
    """The 50,257 byte sequences of the openai-whisper package, without importing it."""
    package = importlib.util.find_spec("whisper")
    if package is None or package.origin is None:
        raise FileNotFoundError("openai-whisper is not installed: its assets/multilingual.tiktoken is needed")
    lines = (
        Path(package.origin).with_name("assets").joinpath("multilingual.tiktoken").read_text().splitlines()
    )
    pairs = (line.split() for line in lines if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def build_tokenizer(ranks: dict[bytes, int]) -> Tokenizer:
    """A byte-level BPE; a rank's merge is the pair it falls into when only lower ranks may merge."""
    letters = _printable_bytes()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _split(token, rank, ranks)
        if len(parts) == 2:
            merges.append((written(parts[0]), written(parts[1])))
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in TIMESTAMPS])
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens, not Whisper's {VOCABULARY_SIZE}")
    return tokenizer


def _split(token: bytes, below: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The token after all merges of a lower rank than `below`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, below) for left, right in itertools.pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= below:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _printable_bytes() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others become U+0100 and on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
