"""Real data: what ships, files of one's own, and what is said when a file is damaged or does not fit."""

import numpy as np
import pytest

from autopar.models import get
from autopar.models.data.choose import data_for
from autopar.models.data.pictures import load_digits, read_pictures
from autopar.models.data.text import read_text


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_digits_are_all_there_and_held_out_ones_are_apart(digits):
    assert (len(digits.images["train"]), len(digits.images["eval"])) == (1618, 179)
    assert digits.classes == 10
    seen = digits.images["train"]
    assert abs(seen.mean()) < 1e-5 and abs(seen.std() - 1) < 1e-5
    # A digit can be told from its nearest neighbour in the training images: images and labels belong together.
    distance = ((digits.images["eval"][:, None] - seen[None]) ** 2).sum(axis=(2, 3, 4))
    nearest = digits.labels["train"][distance.argmin(axis=1)]
    assert (nearest == digits.labels["eval"]).mean() > 0.95


def test_images_are_enlarged_by_whole_pixels(digits):
    one, large = (digits.batch(3, 4, size, np.dtype("float32")) for size in (8, 24))
    np.testing.assert_array_equal(np.kron(one["image"], np.ones((1, 3, 3, 1), np.float32)), large["image"])
    np.testing.assert_array_equal(one["label"], large["label"])
    other = digits.batch(3, 4, 8, np.dtype("float64"), "eval")
    assert other["image"].dtype == np.float64 and not np.array_equal(one["image"], other["image"])


def test_a_file_of_images(tmp_path):
    path = tmp_path / "mine.npz"
    image = np.arange(20 * 4 * 6).reshape(20, 4, 6, 1)
    np.savez(path, image=image, label=np.arange(20))
    found = read_pictures(path)
    assert found.classes == 20
    np.testing.assert_array_equal(found.labels["eval"], [9, 19])
    batch = found.batch(0, 5, 4, np.dtype("float32"))
    assert batch["image"].shape == (5, 4, 4, 3) and batch["label"].dtype == np.int32


def test_a_file_of_text(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(bytes(range(200)))
    found = read_text(path)
    assert found.train.tobytes() == bytes(range(180)) and found.eval.tobytes() == bytes(range(180, 200))


def _saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda p: p, "No such file"),
        (lambda p: (p.write_bytes(b"") and None) or p, "damaged or of another kind"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut") and p, "damaged or of another kind"),
        (lambda p: p.write_bytes(_saved(p, image=np.ones((20, 8, 8, 1)), label=np.ones(20, int)).read_bytes()[:300])
         and p, "damaged or of another kind"),
        (lambda p: _saved(p, x=np.ones(3)), "but it has x"),
        (lambda p: _saved(p, image=np.ones((20, 8, 8)), label=np.ones(20, int)), r"are \(20, 8, 8\) and \(20,\)"),
        (lambda p: _saved(p, image=np.ones((5, 8, 8, 1)), label=np.ones(5, int)), "n at least 10"),
        (lambda p: _saved(p, image=np.ones((20, 8, 8, 1)), label=np.ones(20)), "labels are float64"),
        (lambda p: _saved(p, image=np.ones((20, 8, 8, 1)), label=np.arange(20)), "set classes=20"),
    ],
)  # fmt: skip
def test_a_bad_file_of_images(tmp_path, make, hint):
    path = make(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=hint):
        data_for(get("convnet"), path)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (None, "No such file"),
        (b"", "has only 0 bytes"),
        (b"123456789", "has only 9 bytes"),
        (b"x" * 300, "the eval split has only 30"),
    ],
)
def test_a_bad_file_of_text(tmp_path, content, hint):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=hint):
        data_for(get("gpt"), path)


def test_text_for_models_of_tokens():
    data = data_for(get("gpt"))
    assert "standard library's sources" in data.about
    one, again, held_out = data.train(3), data.train(3), data.evaluation(3)
    np.testing.assert_array_equal(one["tokens"], again["tokens"])
    assert not np.array_equal(one["tokens"], held_out["tokens"])
    assert bytes(one["tokens"][0].astype(np.uint8)).isascii()


def test_masked_text_for_models_of_masked_tokens():
    recipe = get("bert")
    batch = data_for(recipe).train(0)
    hidden = batch["weights"] > 0
    assert hidden.sum(axis=1).tolist() == [recipe.config.masked] * recipe.config.batch_size
    assert (batch["tokens"][hidden] == 0).all()
    np.testing.assert_array_equal(batch["tokens"][~hidden], batch["targets"][~hidden])
    assert {k: v.dtype for k, v in batch.items()} == {k: v.dtype for k, v in recipe.batch_spec.items()}


def test_others_are_trained_on_batches_of_their_own():
    recipe = get("seq2seq")
    data = data_for(recipe)
    np.testing.assert_array_equal(data.train(5)["source"], recipe.batch(5)["source"])
    assert not np.array_equal(data.evaluation(5)["source"], recipe.batch(5)["source"])
    assert data_for(get("gpt", vocab=64)).about == "synthetic batches"
    with pytest.raises(ValueError, match="only models of tokens and targets"):
        data_for(recipe, "mine.txt")
    with pytest.raises(ValueError, match="set vocab=256"):
        data_for(get("gpt", vocab=64), "mine.txt")
