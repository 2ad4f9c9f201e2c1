"""Speech that is synthesised, so that what was said is known: each symbol of an alphabet is a sound of its own.

A sound is a source and a filter (Fant 1960): pulses of the vocal folds at a gliding pitch, or noise, through three
resonances. Speakers differ in pitch, length of the vocal tract, spectral tilt and loudness; sounds in length; there
are pauses and background noise. What tells sounds apart is where their resonances lie, as in vowels and fricatives.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

# Mean and standard deviation of the logarithmic mel features of this speech, over utterances and channels.
LOG_MEL_MEAN, LOG_MEL_STD = -1.0, 2.5

ABOUT = "synthesised speech with transcripts, a new utterance each time"

FIRST_FORMANT_HZ, SECOND_FORMANT_HZ, THIRD_FORMANT_HZ = (250.0, 900.0), (950.0, 2500.0), (2500.0, 3500.0)
HISS_HZ = (1200.0, 3700.0)
PITCH_HZ = (90.0, 240.0)
NOISE_DB = (10.0, 30.0)  # signal above background
LENGTHENING = (1.2, 1.5)  # of an utterance, over its symbols at their shortest
PAUSE_SHARE = 0.3  # of the places between two symbols


@dataclass(frozen=True, kw_only=True)
class SpeechSizes:
    """What a batch of speech is like.

    Attributes:
        batch_size: utterances.
        samples: the longest utterance.
        sample_rate: samples in a second.
        symbols: size of the alphabet; symbols are 1 to this, for 0 is padding.
        tokens: the most symbols of an utterance.
        shortest: samples of the shortest symbol; `tokens` of them at 1.2 times this must fit into `samples`.
    """

    batch_size: int
    samples: int
    sample_rate: int
    symbols: int
    tokens: int
    shortest: int

    def __post_init__(self) -> None:
        needed = int(np.ceil(LENGTHENING[0] * self.tokens * self.shortest))
        if needed > self.samples or not self.tokens or not self.symbols:
            raise ValueError(
                f"{self.tokens} tokens of {self.symbols} symbols were asked for in {self.samples} samples, which need "
                f"{needed}; there must be a symbol and a token at least: give more samples (frames), or fewer tokens"
            )


class Speaker(NamedTuple):
    """How one utterance is spoken: pitch in Hz, scale of all resonances, fall of the spectrum, root mean square."""

    pitch_hz: float
    tract: float
    tilt: float
    loudness: float


def speech_batch(seed: int, sizes: SpeechSizes, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Utterances and what is said in them.

    Args:
        seed: the same seed gives the same batch; the alphabet's sounds are the same for all.
        sizes: see `SpeechSizes`.
        dtype: floating dtype of the waveform.

    Returns:
        {"waveform": [batch_size, samples], zero after the utterance's end; "length": [batch_size] int32, in samples;
        "transcript": [batch_size, tokens] int32, padded with 0}.
    """
    rng = np.random.default_rng(seed)
    waveform = np.zeros((sizes.batch_size, sizes.samples))
    transcript = np.zeros((sizes.batch_size, sizes.tokens), np.int32)
    length = np.zeros(sizes.batch_size, np.int32)
    for i, count in enumerate(rng.integers((sizes.tokens + 1) // 2, sizes.tokens + 1, sizes.batch_size)):
        transcript[i, :count] = rng.integers(1, sizes.symbols + 1, count)
        utterance = _utterance(rng, transcript[i, :count], sizes)
        waveform[i, : len(utterance)], length[i] = utterance, len(utterance)
    return {"waveform": waveform.astype(dtype), "length": length, "transcript": transcript}


def speech_spec(sizes: SpeechSizes, dtype: np.dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `speech_batch`."""
    return {
        "waveform": jax.ShapeDtypeStruct((sizes.batch_size, sizes.samples), dtype),
        "length": jax.ShapeDtypeStruct((sizes.batch_size,), np.int32),
        "transcript": jax.ShapeDtypeStruct((sizes.batch_size, sizes.tokens), np.int32),
    }


def formants(symbol: int) -> np.ndarray:
    """Where a symbol's resonances lie: [3] Hz, rising, the same for every batch.

    Symbols fill the plane of the first two evenly (the additive recurrence of the plastic number), so that those of a
    small alphabet are far apart.
    """
    share = symbol * np.array([0.7548776662, 0.5698402910, 0.6180339887]) % 1.0
    if hisses(symbol):
        centre = _between(HISS_HZ, share[0])
        return np.array([0.9, 1.0, 1.1]) * centre
    ranges = (FIRST_FORMANT_HZ, SECOND_FORMANT_HZ, THIRD_FORMANT_HZ)
    return np.array([_between(span, x) for span, x in zip(ranges, share, strict=True)])


def hisses(symbol: int) -> bool:
    """Whether a symbol's source is noise, not pulses: every fourth's is."""
    return symbol % 4 == 0


def _between(span: tuple[float, float], share: float) -> float:
    low, high = span
    return low * (high / low) ** share


def _utterance(rng: np.random.Generator, symbols: np.ndarray, sizes: SpeechSizes) -> np.ndarray:
    shortest = sizes.shortest * len(symbols)
    length = min(sizes.samples, int(shortest * rng.uniform(*LENGTHENING)))
    # What is left beside the shortest symbols goes to symbols and to pauses: before, between and after them.
    pauses = rng.exponential(size=len(symbols) + 1)
    pauses[1:-1] *= rng.random(len(symbols) - 1) < PAUSE_SHARE
    stretches = rng.exponential(size=len(symbols))
    unit = (length - shortest) / (pauses.sum() + stretches.sum())
    speaker = Speaker(
        pitch_hz=_between(PITCH_HZ, rng.random()),
        tract=rng.uniform(0.9, 1.1),
        tilt=rng.uniform(0.3, 1.0),
        loudness=0.1 * 2 ** rng.uniform(-1.0, 1.0),
    )
    signal, start = np.zeros(length), 0.0
    for symbol, pause, stretch in zip(symbols, pauses[:-1], stretches, strict=True):
        start += unit * pause
        end = start + sizes.shortest + unit * stretch
        signal[int(start) : int(end)] = _sound(rng, int(symbol), int(end) - int(start), speaker, sizes.sample_rate)
        start = end
    noise = speaker.loudness * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    return signal + noise * rng.standard_normal(length)


def _sound(rng: np.random.Generator, symbol: int, samples: int, speaker: Speaker, sample_rate: int) -> np.ndarray:
    """A symbol, [samples]: its source, filtered as a whole, with soft edges."""
    if hisses(symbol):
        source = rng.standard_normal(samples)
    else:
        first, last = rng.uniform(0.85, 1.15, 2)
        glide = np.linspace(first, last, samples)
        turns = np.cumsum(speaker.pitch_hz * glide) / sample_rate + rng.random()
        source = np.diff(np.floor(turns), prepend=np.floor(turns[0]))
    hz = np.fft.rfftfreq(2 * samples, 1 / sample_rate)
    # Lips radiate what changes, not what is steady; voices then fall off by their tilt.
    radiation = hz / 100.0 * (1 + hz / 100.0) ** (-1.0 - speaker.tilt)
    response = radiation * _resonances(hz, speaker.tract * formants(symbol))
    sound = np.fft.irfft(np.fft.rfft(source, 2 * samples) * response)[:samples]
    sound *= np.minimum(1.0, 8.0 * np.sin(np.pi * (np.arange(samples) + 0.5) / samples))
    level = speaker.loudness * rng.uniform(0.6, 1.4)
    return sound * level / np.sqrt(np.square(sound).mean() + 1e-12)


def _resonances(hz: np.ndarray, centres_hz: np.ndarray) -> np.ndarray:
    """Transfer function of second-order resonators in series, as wide as a twelfth of their frequency and 30 Hz."""
    centre = centres_hz[:, None]
    width = 30.0 + centre / 12.0
    return np.prod(centre**2 / (centre**2 - hz**2 + 1j * hz * width), axis=0)
