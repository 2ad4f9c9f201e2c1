"""Real text, as bytes: that which every machine has, the source of Python's own standard library, or a file.

The library is code with English docstrings, a few tens of megabytes, and needs no download. A token is a byte, so
the vocabulary is 256. Every tenth file is held out for evaluation; whole files, so that nothing leaks.
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopar.models.data.splits import EVAL_EVERY, SPLITS, of_split

VOCAB = 256


@dataclass(frozen=True)
class Text:
    """Byte streams to cut batches from.

    Attributes:
        train: [n] uint8.
        eval: [m] uint8, from files that are not in `train`.
    """

    train: np.ndarray
    eval: np.ndarray

    def batch(self, seed: int, batch_size: int, sequence: int, split: str = "train") -> dict[str, np.ndarray]:
        """Sequences that start at random places of one split, and the byte that follows each byte.

        Args:
            seed: the same seed gives the same batch.
            batch_size: number of sequences.
            sequence: bytes in each.
            split: "train" or "eval".

        Returns:
            {"tokens": [batch_size, sequence] int32, "targets": the same, one position on}.

        Raises:
            ValueError: for an unknown split, or one shorter than a sequence.
        """
        stream = of_split({"train": self.train, "eval": self.eval}, split)
        if len(stream) <= sequence:
            raise ValueError(
                f"sequences of {sequence} bytes were asked for, but the {split} split has only {len(stream)}; "
                "ask for shorter ones, or load more text (max_bytes)"
            )
        starts = np.random.default_rng(seed).integers(0, len(stream) - sequence, batch_size)
        windows = stream[starts[:, None] + np.arange(sequence + 1)].astype(np.int32)
        return {"tokens": np.ascontiguousarray(windows[:, :-1]), "targets": np.ascontiguousarray(windows[:, 1:])}


def load_text(max_bytes: int = 4_000_000, root: str | Path | None = None) -> Text:
    """Reads the modules and packages of the standard library, in alphabetical order.

    Args:
        max_bytes: stop after this many bytes (of both splits together).
        root: the directory to read `*.py` from instead; its packages are read too.

    Returns:
        The text, split by file. The same Python version gives the same text.

    Raises:
        ValueError: when there are no sources (some distributions ship only compiled ones), or too few for both
            splits.
    """
    folder = Path(root if root is not None else sysconfig.get_paths()["stdlib"])
    # Installed packages and the interpreter's own tests live below the library, and differ between machines.
    skipped = {"site-packages", "dist-packages", "test"}
    paths = sorted(p for p in folder.rglob("*.py") if not skipped & set(p.relative_to(folder).parts))
    streams: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    left = max_bytes
    for i, path in enumerate(paths):
        if left <= 0:
            break
        content = path.read_bytes()[:left]
        left -= len(content)
        streams["eval" if i % EVAL_EVERY == EVAL_EVERY - 1 else "train"].append(content)
    train, evaluation = (np.frombuffer(b"".join(streams[split]), np.uint8) for split in SPLITS)
    if not len(train) or not len(evaluation):
        raise ValueError(
            f"text to train on was asked for, but {folder} has {len(paths)} Python sources and {max_bytes} bytes "
            f"of them give {len(train)} for training and {len(evaluation)} for evaluation; pass root=, a folder "
            f"with at least {EVAL_EVERY} *.py files, or a larger max_bytes"
        )
    return Text(train, evaluation)


def read_text(path: str | Path) -> Text:
    """Reads one file of any bytes; its last tenth is held out.

    Args:
        path: the file.

    Returns:
        The text.

    Raises:
        ValueError: when there is no such file, or it is too short to hold anything out.
    """
    try:
        content = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(f"text to train on was to be read from {path}: {error.strerror or error}") from None
    held_out = len(content) // EVAL_EVERY
    if not held_out:
        raise ValueError(
            f"text to train on was to be read from {path}, but it has only {len(content)} bytes; give a file with "
            f"at least {EVAL_EVERY}, of which the last tenth is held out for evaluation"
        )
    return Text(content[:-held_out], content[-held_out:])
