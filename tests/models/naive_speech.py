"""Layers of the speech families as their papers write them, in NumPy, one position at a time where that is clearer."""

import jax
import numpy as np
from flax import nnx


def randomised(module, seed=0):
    """The module with all parameters drawn anew, biases too, and them as nested dicts of arrays."""
    structure, state = nnx.split(module)
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(state)
    state = jax.tree.unflatten(tree, [(0.5 * rng.standard_normal(x.shape)).astype(x.dtype) for x in leaves])
    return nnx.merge(structure, state), jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def linear(p, x):
    kernel, out = p["kernel"], p.get("bias", 0.0)
    axes = kernel.ndim - 1 if x.ndim > 1 and x.shape[-1] != kernel.shape[0] else 1
    return np.tensordot(x, kernel, axes) + out


def layer_norm(p, x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def swish(x):
    return x / (1 + np.exp(-x))


def feed_forward(p, x):
    return linear(p["down"], swish(linear(p["up"], layer_norm(p["norm"], x))))


def sines(position, hidden):
    angle = position * 10_000.0 ** (-np.arange(0, hidden, 2) / hidden)
    return np.concatenate([np.sin(angle), np.cos(angle)])


def attention(p, x, memory, sees):
    """[s, d], [t, d] and whether position i sees j -> [s, d]; relative if there are parameters for positions."""
    heads, size = p["query"]["kernel"].shape[1:]
    out = np.zeros((len(x), heads, size))
    for i in range(len(x)):
        seen = [j for j in range(len(memory)) if sees(i, j)]
        for h in range(heads):
            q = x[i] @ p["query"]["kernel"][:, h] + p["query"]["bias"][h]
            scores = []
            for j in seen:
                score = q @ (memory[j] @ p["key"]["kernel"][:, h])
                if "position" in p:
                    distance = sines(i - j, x.shape[1]) @ p["position"]["kernel"][:, h]
                    score += (q + p["distance_bias"][h]) @ distance
                scores.append(score / np.sqrt(size))
            values = [memory[j] @ p["value"]["kernel"][:, h] + p["value"]["bias"][h] for j in seen]
            out[i, h] = softmax(np.array(scores)) @ values
    return np.einsum("shk,hkd->sd", out, p["out"]["kernel"]) + p["out"]["bias"]


def depthwise(kernel, x, back):
    """[k, d] and [s, d]: position i reads from `back` before it on."""
    out = np.zeros_like(x)
    for i in range(len(x)):
        for k in range(len(kernel)):
            if 0 <= (at := i - back + k) < len(x):
                out[i] += kernel[k] * x[at]
    return out
