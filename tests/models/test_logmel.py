"""Log-mel features beside their definition, bin by bin, and the filters' closed properties."""

import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models.layers.logmel import FLOOR, fft_length, frames, hertz, log_mel, mel, mel_filters, window_length


def naive(waveform, features, hop, rate):
    window, size = 5 * hop // 2, fft_length(hop)
    edges = [700 * (np.exp(m / 1127) - 1) for m in np.linspace(mel(60), mel(rate / 2), features + 2)]
    rows = []
    for end in range(hop, len(waveform) + 1, hop):
        frame = [waveform[i] if i >= 0 else 0.0 for i in range(end - window, end)]
        frame = [x * np.sin(np.pi * i / window) ** 2 for i, x in enumerate(frame)]
        power = []
        for k in range(size // 2 + 1):
            wave = np.exp(-2j * np.pi * k * np.arange(window) / size)
            power.append(abs(np.dot(frame, wave)) ** 2)
        row = []
        for low, centre, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            total = 0.0
            for k, p in enumerate(power):
                hz = k * rate / size
                if low < hz <= centre:
                    total += p * (hz - low) / (centre - low)
                elif centre < hz < high:
                    total += p * (high - hz) / (high - centre)
            row.append(np.log(total + FLOOR))
        rows.append(row)
    return np.array(rows)


def test_features_are_those_of_the_definition():
    hop, rate, features = 40, 8000, 8
    waveform = np.random.default_rng(0).standard_normal((2, 5 * hop))
    waveform[1, 2 * hop :] = 0.0
    found = log_mel(jnp.asarray(waveform), features, hop, rate)
    np.testing.assert_allclose(found, [naive(w, features, hop, rate) for w in waveform], rtol=1e-10)
    assert found[1, -1, 0] == pytest.approx(np.log(FLOOR))


@pytest.mark.parametrize(("features", "hop", "rate"), [(16, 80, 8000), (80, 160, 16_000)])
def test_filters_sum_to_one_between_their_centres(features, hop, rate):
    filters = mel_filters(features, fft_length(hop), rate)
    hz = np.arange(len(filters)) * rate / fft_length(hop)
    centres = hertz(np.linspace(mel(60.0), mel(rate / 2), features + 2))[1:-1]
    inside = (hz >= centres[0]) & (hz <= centres[-1])
    np.testing.assert_allclose(filters[inside].sum(axis=1), 1.0, rtol=1e-12)
    assert filters.min() == 0.0 and filters.max() <= 1.0 and ((filters > 0).sum(axis=1) <= 2).all()
    assert (np.diff(filters.argmax(axis=0)) >= 0).all()
    np.testing.assert_allclose(mel(hertz(np.arange(0.0, 3000.0, 100.0))), np.arange(0.0, 3000.0, 100.0), atol=1e-9)
    assert mel(1000.0) == pytest.approx(1000.0, abs=0.1)


def test_a_tone_is_loudest_in_its_own_filter():
    edges = hertz(np.linspace(mel(60.0), mel(4000.0), 18))
    for i in (3, 8, 14):
        tone = np.sin(2 * np.pi * edges[i + 1] * np.arange(800) / 8000)[None]
        assert int(log_mel(jnp.asarray(tone), 16, 80, 8000)[0, 6].argmax()) == i


def test_blind_filters_are_refused():
    with pytest.raises(ValueError, match=r"of them lie between two of its bins, 31\.2 Hz apart; ask for fewer"):
        mel_filters(200, 256, 8000)


def test_frames_end_with_their_hop():
    found = frames(jnp.arange(1.0, 17.0)[None], 4)
    assert window_length(4) == 10
    np.testing.assert_array_equal(found[0, 0], [0, 0, 0, 0, 0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(found[0, 3], np.arange(7, 17))
