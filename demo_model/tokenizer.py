"""Builds a CLIPTokenizer whose tokens are the world's words; any other text falls back to bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"


def byte_letters() -> list[str]:
    """The 256 printable letters that byte-level BPE writes bytes as (GPT-2's table), by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def merges_for(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges, in order of rank, that make every word one token.

    As in BPE training, each new merge joins the first two pieces of the first unfinished word and
    is applied to all words at once, so that replaying the merges by rank gives the same pieces.
    """
    pieces = [[*word[:-1], word[-1] + SUFFIX] for word in words]
    merges: list[tuple[str, str]] = []
    while unfinished := [word for word in pieces if len(word) > 1]:
        pair = (unfinished[0][0], unfinished[0][1])
        merges.append(pair)
        pieces = [_merge(word, pair) for word in pieces]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    at = 0
    while at < len(word):
        if tuple(word[at : at + 2]) == pair:
            merged.append(pair[0] + pair[1])
            at += 2
        else:
            merged.append(word[at])
            at += 1
    return merged


def vocabulary_and_merges(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's layout: bytes, bytes that end a word, merges, start and end of text."""
    letters, merges = byte_letters(), merges_for(words)
    tokens = [*letters, *(letter + SUFFIX for letter in letters), *("".join(m) for m in merges)]
    tokens = list(dict.fromkeys([*tokens, START, END]))
    return {token: index for index, token in enumerate(tokens)}, merges


def build_tokenizer(words: Sequence[str], max_length: int) -> CLIPTokenizer:
    """A tokenizer for lower-case ASCII words; lower-cases, never fails on any text."""
    vocabulary, merges = vocabulary_and_merges(words)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def save_tokenizer(tokenizer: CLIPTokenizer, words: Sequence[str], folder: Path) -> None:
    """save_pretrained, plus the vocab.json and merges.txt that older transformers read.

    A new tokenizer is written: one that has been used would be saved with its last padding.
    """
    build_tokenizer(words, tokenizer.model_max_length).save_pretrained(folder)
    vocabulary, merges = vocabulary_and_merges(words)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
