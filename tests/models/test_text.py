"""The standard library as a corpus."""

import numpy as np
import pytest

from autopar.models.data.text import load_text


@pytest.fixture(scope="module")
def text():
    return load_text(max_bytes=500_000)


def test_splits(text):
    assert len(text.train) + len(text.eval) == 500_000
    assert len(text.train) > len(text.eval) > 1000
    assert b"def " in text.train.tobytes() and b"import" in text.eval.tobytes()


def test_loading_is_deterministic(text):
    again = load_text(max_bytes=500_000)
    assert np.array_equal(text.train, again.train) and np.array_equal(text.eval, again.eval)


def test_batches(text):
    one, again, other = text.batch(1, 4, 32), text.batch(1, 4, 32), text.batch(2, 4, 32)
    assert one["tokens"].shape == one["targets"].shape == (4, 32)
    assert one["tokens"].dtype == np.int32
    assert np.array_equal(one["tokens"][:, 1:], one["targets"][:, :-1])
    assert np.array_equal(one["tokens"], again["tokens"]) and not np.array_equal(one["tokens"], other["tokens"])
    held_out = text.batch(1, 4, 32, split="eval")
    assert held_out["tokens"][0].astype(np.uint8).tobytes() in text.eval.tobytes()


def test_errors(text, tmp_path):
    with pytest.raises(ValueError, match="unknown split 'test'"):
        text.batch(0, 1, 8, split="test")
    with pytest.raises(ValueError, match="ask for shorter ones"):
        text.batch(0, 1, 10**7)
    with pytest.raises(ValueError, match="has 0 Python sources"):
        load_text(root=tmp_path)
    (tmp_path / "one.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="at least 10"):
        load_text(root=tmp_path)


def test_reads_a_folder_of_ones_own(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    for i in range(10):
        (folder / f"m{i}.py").write_text(f"x = {i}\n")
    text = load_text(root=folder)
    assert text.eval.tobytes() == b"x = 9\n"
    assert len(text.train) == 9 * 6
