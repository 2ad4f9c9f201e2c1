"""What the blocks of decoders have in common, in NumPy, for one token or one sequence: no batch, and loops.

Names of weights are those of the layers' parameters.
"""

import jax
import numpy as np


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    """The tanh form, which is what `jax.nn.gelu` means."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(p, x):
    """One token."""
    y = x - x.mean()
    return y / np.sqrt((y**2).mean() + 1e-5) * p["scale"] + p["bias"]


def rms_norm(p, x):
    """One token."""
    return x / np.sqrt((x**2).mean() + 1e-6) * p["scale"]


def rope(x, position, theta):
    """One head: numbers i and i + k/2 are a complex number, turned by the position."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def mix(query, keys, values, scale):
    """What one head of one token takes from those it sees."""
    weights = softmax([query @ key * scale for key in keys])
    return sum(w * value for w, value in zip(weights, values, strict=True))


def attention(p, x, causal):
    """One sequence, whose tokens see each other, or themselves and those before them: [s, d] -> [s, d]."""
    out = np.zeros_like(x) + p["bo"]
    for i in range(p["wq"].shape[1]):
        q, k, v = x @ p["wq"][:, i] + p["bq"][i], x @ p["wk"][:, i], x @ p["wv"][:, i] + p["bv"][i]
        seen = [slice(t + 1 if causal else None) for t in range(len(x))]
        out += np.stack([mix(q[t], k[to], v[to], q.shape[1] ** -0.5) for t, to in enumerate(seen)]) @ p["wo"][i]
    return out


def gated_mlp(p, x, activation=silu):
    """One token."""
    return (activation(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def expert(p, e, x, activation):
    """Expert `e` of a routed layer, for one token."""
    inner = activation(x @ p["w1"][e])
    return (inner * (x @ p["gate"][e]) if "gate" in p else inner) @ p["w2"][e]


def shaken(params, rng):
    """Weights so large that nothing is nearly linear or nearly uniform; norms and biases that do something."""
    return jax.tree.map(lambda w: rng.normal(size=w.shape), params)
