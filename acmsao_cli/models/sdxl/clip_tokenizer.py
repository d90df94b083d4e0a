"""CLIP's published vocabulary, for single files, which bring weights but no tokenizer."""

from __future__ import annotations

import gzip
from pathlib import Path

from transformers import CLIPTokenizer

VOCABULARY = Path(__file__).parent / "reference" / "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SIZE = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77


def clip_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """SDXL's two tokenizers; they differ in how they pad: the end token, and "!" (id 0)."""
    vocabulary, merges = _vocabulary()
    first = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    second = CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, pad_token="!"
    )
    return first, second


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids in CLIP's order: bytes, bytes that end a word, merges, start and end of text."""
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode("utf-8").split("\n")
    letters = _byte_letters()
    num_merges = VOCABULARY_SIZE - 2 * len(letters) - 2
    merges = [(left, right) for left, right in map(str.split, lines[1 : num_merges + 1])]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [left + right for left, right in merges] + [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """A printable letter for each byte: itself if printable, else one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
