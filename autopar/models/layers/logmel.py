"""Logarithmic mel features of a waveform: frames, a window, their power spectra, triangular filters, a logarithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 1e-6  # added to each filter's power: silence is then log(FLOOR), and not minus infinity


def mel(hz: np.ndarray | float) -> np.ndarray:
    """Pitch as heard (O'Shaughnessy 1987), in mel: 1000 Hz are about 1000 mel."""
    return 1127.0 * np.log1p(np.asarray(hz) / 700.0)


def hertz(mels: np.ndarray | float) -> np.ndarray:
    """The inverse of `mel`."""
    return 700.0 * np.expm1(np.asarray(mels) / 1127.0)


@functools.cache
def mel_filters(features: int, fft: int, sample_rate: int) -> np.ndarray:
    """Triangles that are spaced evenly in mel from 60 Hz to half the sample rate.

    Each rises from the centre of the one before to 1 at its own, and falls to the centre of the next: between the
    first and the last centre they sum to one.

    Args:
        features: number of triangles.
        fft: length of the Fourier transform; its bins are sample_rate / fft apart.
        sample_rate: in Hz.

    Returns:
        [fft // 2 + 1, features] float64, read only.

    Raises:
        ValueError: if a triangle lies between two bins and would be blind.
    """
    edges_hz = hertz(np.linspace(mel(60.0), mel(sample_rate / 2), features + 2))
    bins_hz = np.arange(fft // 2 + 1)[:, None] * sample_rate / fft
    low, centre, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    filters = np.maximum(0.0, np.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)))
    if blind := np.flatnonzero(filters.sum(axis=0) == 0.0).size:
        raise ValueError(
            f"{features} mel features of a Fourier transform of {fft} samples at {sample_rate} Hz were asked for, but "
            f"{blind} of them lie between two of its bins, {sample_rate / fft:.3g} Hz apart; ask for fewer features, "
            "or for a longer hop (the transform has 2.5 hops and more)"
        )
    filters.flags.writeable = False
    return filters


def window_length(hop: int) -> int:
    """Samples of a frame: 2.5 hops, 25 ms for the usual 10 ms."""
    return 5 * hop // 2


def fft_length(hop: int) -> int:
    """The least power of two that holds a frame."""
    return 1 << (window_length(hop) - 1).bit_length()


def frames(waveform: jax.Array, hop: int) -> jax.Array:
    """The last 2.5 hops before the end of each hop, with silence before the start: [b, n hop] -> [b, n, window].

    No frame reads what comes after its own hop, so that features can be computed while one still speaks.
    """
    hops = waveform.reshape(waveform.shape[0], -1, hop)
    n = hops.shape[1]
    before = jnp.pad(hops, ((0, 0), (2, 0), (0, 0)))
    joined = jnp.concatenate([before[:, :n], before[:, 1 : n + 1], hops], axis=-1)
    return joined[..., 3 * hop - window_length(hop) :]


def log_mel(waveform: jax.Array, features: int, hop: int, sample_rate: int) -> jax.Array:
    """Logarithmic mel features, one frame for each hop, in the waveform's dtype.

    Args:
        waveform: [b, n hop].
        features: number of mel filters.
        hop: samples from one frame to the next.
        sample_rate: in Hz.

    Returns:
        [b, n, features].
    """
    window = window_length(hop)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(frames(waveform, hop) * hann.astype(waveform.dtype), fft_length(hop))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = mel_filters(features, fft_length(hop), sample_rate).astype(waveform.dtype)
    return jnp.log(power @ filters + FLOOR)
