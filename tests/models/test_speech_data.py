"""Synthesised speech: deterministic, within its sizes, and each symbol sounds as its resonances say."""

import numpy as np
import pytest

from autopar.models.data.speech import SpeechSizes, formants, hisses, speech_batch, speech_spec

SIZES = SpeechSizes(batch_size=8, samples=8000, sample_rate=8000, symbols=15, tokens=8, shortest=640)


def test_a_transcript_is_padded_and_the_waveform_ends_with_the_utterance():
    batch = speech_batch(0, SIZES, np.dtype("float32"))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in speech_spec(SIZES, np.dtype("float32")).items()
    }
    for waveform, length, transcript in zip(batch["waveform"], batch["length"], batch["transcript"], strict=True):
        count = (transcript > 0).sum()
        assert transcript[:count].all() and transcript.max() <= 15 and 4 <= count <= 8
        # Room for an alignment whatever is repeated: two frames of 320 samples to each symbol, and more.
        assert 1.2 * 640 * count - 1 <= length <= min(8000, 1.5 * 640 * count)
        assert waveform[:length].std() > 0.01 and not waveform[length:].any()


def test_symbols_sound_where_their_resonances_are():
    sizes = SpeechSizes(batch_size=256, samples=4000, sample_rate=8000, symbols=15, tokens=1, shortest=1600)
    batch = speech_batch(0, sizes, np.dtype("float64"))
    power = np.square(np.abs(np.fft.rfft(batch["waveform"])))
    power /= power.sum(axis=1, keepdims=True)
    hz = np.arange(2001) * 2.0
    for symbol in range(1, 16):
        spectrum = power[batch["transcript"][:, 0] == symbol].mean(axis=0)
        # Most of it within a voice's spread of the resonances, and less just outside than at the first.
        low, high = formants(symbol)[[0, -1]]
        assert spectrum[(hz > 0.7 * low) & (hz < 1.3 * high)].sum() > 0.6
        at_first = spectrum[(hz > 0.9 * low) & (hz < 1.1 * low)].mean()
        assert at_first > 3 * spectrum[hz < 0.5 * low].mean()
        if hisses(symbol):
            assert spectrum[hz < 800].sum() < 0.2


def test_symbols_of_a_small_alphabet_are_apart():
    voiced = np.log([formants(s)[:2] for s in range(1, 16) if not hisses(s)])
    distance = np.abs(voiced[:, None] - voiced).max(axis=-1)
    assert distance[~np.eye(len(voiced), dtype=bool)].min() > np.log(1.1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"which need 9216; .*: give more samples"):
        SpeechSizes(batch_size=1, samples=8000, sample_rate=8000, symbols=15, tokens=12, shortest=640)
