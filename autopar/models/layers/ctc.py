"""Connectionist temporal classification (Graves et al. 2006): a loss over all alignments, and what was recognised.

Class 0 is the blank, and pads transcripts. An alignment names a class for each frame; repeats, then blanks, are
taken out of it to get the transcript.
"""

import jax
import jax.numpy as jnp

BLANK = 0
IMPOSSIBLE = -1e9  # a log-probability that adds nothing


def ctc_loss(logits: jax.Array, heard: jax.Array, transcript: jax.Array) -> jax.Array:
    """Minus the log-probability of each transcript: the sum over its alignments.

    The forward recursion of section 4.1 over the transcript with blanks around each symbol: state s is reached from
    s, from s - 1, and, past a blank between two different symbols, from s - 2.

    Args:
        logits: [b, t, c], floating.
        heard: [b, t] booleans, true for an utterance's frames, which come first.
        transcript: [b, u] integers, padded with 0; it must fit: u symbols and their repeats into the frames.

    Returns:
        [b], in nats for each utterance.
    """
    batch, tokens = transcript.shape
    states = 2 * tokens + 1
    symbols = jnp.stack([jnp.zeros_like(transcript), transcript], axis=-1).reshape(batch, states - 1)
    symbols = jnp.pad(symbols, ((0, 0), (0, 1)))
    before = jnp.pad(symbols, ((0, 0), (2, 0)))[:, :states]
    skips = (symbols != BLANK) & (symbols != before)
    one_hot = jax.nn.one_hot(symbols, logits.shape[-1], dtype=logits.dtype)
    emitted = jnp.einsum("btc,bsc->tbs", jax.nn.log_softmax(logits), one_hot)
    state = jnp.arange(states)

    def advance(alpha: jax.Array, frame: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        emits, goes_on = frame
        shifted = jnp.pad(alpha, ((0, 0), (2, 0)), constant_values=IMPOSSIBLE)
        skipped = jnp.where(skips, shifted[:, :states], IMPOSSIBLE)
        reached = jnp.stack([alpha, shifted[:, 1 : states + 1], skipped])
        return jnp.where(goes_on[:, None], jax.nn.logsumexp(reached, axis=0) + emits, alpha), None

    alpha = jnp.where(state < 2, emitted[0], IMPOSSIBLE)
    alpha, _ = jax.lax.scan(advance, alpha, (emitted[1:], heard.T[1:]))
    # An alignment ends with the last symbol or with the blank after it.
    last = 2 * (transcript != BLANK).sum(axis=1)[:, None]
    ends = (state == last) | (state == last - 1)
    return -jax.nn.logsumexp(jnp.where(ends, alpha, IMPOSSIBLE), axis=-1)


def token_errors(logits: jax.Array, heard: jax.Array, transcript: jax.Array) -> jax.Array:
    """How many symbols to insert, delete or replace to turn what is recognised into the transcript.

    Recognised is what the likeliest alignment says (best path decoding, section 3.2). The distance is Levenshtein's
    (1966), a row of it for each symbol; frames that say nothing new leave the row as it is, so that nothing needs to
    be packed.

    Args:
        logits: [b, t, c].
        heard: [b, t] booleans.
        transcript: [b, u] integers, padded with 0.

    Returns:
        [b] int32.
    """
    best = jnp.where(heard, jnp.argmax(logits, axis=-1), BLANK)
    says = (best != BLANK) & (best != jnp.pad(best, ((0, 0), (1, 0)))[:, :-1])
    batch, tokens = transcript.shape
    place = jnp.arange(tokens + 1, dtype=jnp.int32)

    def advance(row: jax.Array, frame: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        symbol, new = frame
        replaced = row[:, :-1] + (transcript != symbol[:, None])
        nearest = jnp.minimum(row + 1, jnp.pad(replaced, ((0, 0), (1, 0)), constant_values=tokens + len(best[0])))
        # Insertions chain along the row: the least of (nearest at k) + (j - k) over k up to j.
        chained = place + jax.lax.cummin(nearest - place, axis=1)
        return jnp.where(new[:, None], chained, row), None

    row, _ = jax.lax.scan(advance, jnp.broadcast_to(place, (batch, tokens + 1)), (best.T, says.T))
    length = (transcript != BLANK).sum(axis=1)
    return jnp.where(place == length[:, None], row, 0).sum(axis=1, dtype=jnp.int32)
