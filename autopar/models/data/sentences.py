"""Sentences to translate, of random words and lengths, padded to one length."""

import numpy as np

PADDING, BEGIN, END, FIRST_WORD = 0, 1, 2, 3


def sentences(seed: int, batch_size: int, source: int, target: int, vocab: int) -> dict[str, np.ndarray]:
    """Sentences of random words and lengths; a translation is the words renamed, in reverse order.

    Args:
        seed: the same seed gives the same batch; the renaming is one for all.
        batch_size: number of pairs of sentences.
        source: the most words in a sentence.
        target: the most in a translation, with its end.
        vocab: ids of words, and of padding, begin and end.

    Returns:
        {"source": [b, s] int32, "tokens": [b, t] int32, "targets": the same, one position on}.
    """
    rng = np.random.default_rng(seed)
    renamed = FIRST_WORD + np.random.default_rng(0).permutation(vocab - FIRST_WORD)
    lengths = rng.integers(1, min(source, target - 1) + 1, batch_size)
    said = np.full((batch_size, source), PADDING, np.int32)
    stream = np.full((batch_size, target + 1), PADDING, np.int32)
    stream[:, 0] = BEGIN
    for i, n in enumerate(lengths):
        words = rng.integers(FIRST_WORD, vocab, n)
        said[i, :n] = words
        stream[i, 1 : n + 1] = renamed[words[::-1] - FIRST_WORD]
        stream[i, n + 1] = END
    tokens = np.where(stream[:, :-1] == END, PADDING, stream[:, :-1])
    return {"source": said, "tokens": tokens, "targets": np.ascontiguousarray(stream[:, 1:])}


def in_languages(
    batch: dict[str, np.ndarray], seed: int, languages: int, vocab: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Says each source sentence in one of several languages, which differ in the ids of all words.

    Args:
        batch: what `sentences` returns.
        seed: the same seed gives the same languages.
        languages: how many there are.
        vocab: ids of source words, at least as many as `sentences` was given, and of padding, begin and end.

    Returns:
        The batch with other source words, and the language of each sentence, [b] int32.
    """
    language = np.random.default_rng([seed, 1]).integers(0, languages, len(batch["source"]), dtype=np.int32)
    words = vocab - FIRST_WORD
    moved = FIRST_WORD + (batch["source"] - FIRST_WORD + language[:, None] * (words // languages)) % words
    source = np.where(batch["source"] == PADDING, PADDING, moved).astype(np.int32)
    return {**batch, "source": source}, language
