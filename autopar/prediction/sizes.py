"""The sizes of a transformer: all that a prediction asks of a model. Plain numbers, from the zoo or by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from autopar.errors import OptionError

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
OPTIMIZERS = {"adamw": 8, "adafactor": 0, "momentum": 4}  # bytes of moments per parameter (those of rows are nothing)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A transformer: a decoder, or an encoder and a decoder, with dense or routed feed-forwards.

    Attributes:
      name: for people.
      hidden: width of the residual stream.
      layers: of the decoder; of encoder and decoder together where ``encoder_layers`` says how many are the encoder's.
      heads: query heads.
      sequence: tokens of an example (on each side, where there are two).
      vocab: rows of the embedding and columns of the logits.
      head: size of a head; None is hidden / heads.
      kv_heads: heads of keys and values; None is as many as of queries.
      ffn: width of the feed-forward, and of an expert; None is 4 x hidden.
      gated: a dense feed-forward multiplies two projections (SwiGLU).
      gated_experts: so does an expert; None is as a dense one.
      tied: the embedding is the output layer too.
      positions: rows of a learned table of positions; 0 if they are computed.
      one_norm: attention and feed-forward read one normalised copy of the stream, side by side (PaLM).
      dropout: whether there is dropout, which costs masks.
      causal: whether words see only those before them, which a fused attention makes use of.
      encoder_layers: 0 in a decoder.
      source_vocab: rows of the encoder's own embedding; 0 if it has none.
      experts: feed-forwards of a routed layer; 0 if all are dense.
      expert_every: every so many layers one is routed, the last of them.
      choices: experts that a token is sent to.
      capacity_factor: slots per token and choice.
      group: tokens that are routed together; None is all of a device's.
      dtype: of activations and matrix products.
      optimizer: ``adamw``, ``adafactor`` or ``momentum``.

    Raises:
      OptionError: sizes that no model has.

    >>> Sizes(hidden=8192, layers=48, heads=64, sequence=2048, vocab=51_200).parameters // 10**8
    390
    """

    name: str = "model"
    hidden: int
    layers: int
    heads: int
    sequence: int
    vocab: int
    head: int | None = None
    kv_heads: int | None = None
    ffn: int | None = None
    gated: bool = False
    gated_experts: bool | None = None
    tied: bool = True
    positions: int = 0
    one_norm: bool = False
    dropout: bool = False
    causal: bool = True
    encoder_layers: int = 0
    source_vocab: int = 0
    experts: int = 0
    expert_every: int = 1
    choices: int = 2
    capacity_factor: float = 1.0
    group: int | None = None
    dtype: str = "bfloat16"
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check(field.name, str(field.type))
        if not 0 < self.capacity_factor < math.inf:
            raise OptionError(f"{self.name}: capacity_factor is {self.capacity_factor}; give slots per choice, over 0")
        if self.head is None and self.hidden % self.heads:
            raise OptionError(
                f"{self.name}: hidden={self.hidden} does not divide among {self.heads} heads; give head=, the size "
                "of one"
            )
        if self.heads % self.kv:
            raise OptionError(f"{self.name}: {self.heads} heads do not divide among {self.kv} heads of keys and values")
        if self.encoder_layers >= self.layers:
            raise OptionError(
                f"{self.name}: {self.encoder_layers} of {self.layers} layers are the encoder's; layers= counts both "
                "sides, so leave some to the decoder"
            )
        if self.choices > max(self.experts, self.choices * (not self.experts)):
            raise OptionError(f"{self.name}: a token is sent to {self.choices} of {self.experts} experts; take fewer")
        if self.dtype not in BYTES:
            raise OptionError(f"{self.name}: unknown dtype {self.dtype!r}; known: {', '.join(BYTES)}")
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"{self.name}: unknown optimizer {self.optimizer!r}; known: {', '.join(OPTIMIZERS)}")

    def _check(self, name: str, kind: str) -> None:
        value, least = getattr(self, name), 0 if name in _MAY_BE_ZERO else 1
        if not kind.startswith("int") or (value is None and "None" in kind):
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise OptionError(f"{self.name}: {name} is {value!r}; it must be a whole number, {least} or more")
        if value < least:
            raise OptionError(f"{self.name}: {name} is {value}; it must be {least} or more")

    @property
    def head_size(self) -> int:
        """Numbers in one head."""
        return self.hidden // self.heads if self.head is None else self.head

    @property
    def kv(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def width(self) -> int:
        """Width of the feed-forward."""
        return 4 * self.hidden if self.ffn is None else self.ffn

    @property
    def attention_parameters(self) -> int:
        """Of one attention: queries, keys, values, output."""
        return self.hidden * self.head_size * (2 * self.heads + 2 * self.kv)

    @property
    def ffn_parameters(self) -> int:
        """Of one dense feed-forward."""
        return (3 if self.gated else 2) * self.hidden * self.width

    @property
    def expert_parameters(self) -> int:
        """Of one expert."""
        gated = self.gated if self.gated_experts is None else self.gated_experts
        return (3 if gated else 2) * self.hidden * self.width

    def routed(self, layer: int) -> bool:
        """Whether the feed-forward of a layer is a set of experts."""
        return bool(self.experts) and layer % self.expert_every == self.expert_every - 1

    @property
    def routed_layers(self) -> int:
        """How many layers are."""
        return sum(self.routed(layer) for layer in range(self.layers))

    @property
    def attentions(self) -> int:
        """Attentions of all layers; a decoder's layer has a second one where there is an encoder."""
        return self.layers + (self.layers - self.encoder_layers if self.encoder_layers else 0)

    @property
    def embedding_parameters(self) -> int:
        """Tables of words and positions, and the output layer."""
        tables = self.vocab * (1 if self.tied else 2) + self.source_vocab + self.positions
        return tables * self.hidden

    @property
    def parameters(self) -> int:
        """Trained numbers; biases and norms, below 0.1%, are left out."""
        dense = self.layers - self.routed_layers
        ffns = dense * self.ffn_parameters + self.routed_layers * self._routed_parameters(self.experts)
        return self.attentions * self.attention_parameters + ffns + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Those that one token uses."""
        idle = self.routed_layers * max(0, self.experts - self.choices) * self.expert_parameters
        return self.parameters - idle

    def _routed_parameters(self, experts: int) -> int:
        return experts * self.expert_parameters + self.hidden * experts

    @property
    def tokens_per_example(self) -> int:
        """Tokens of an example, both sides counted."""
        return self.sequence * (2 if self.encoder_layers else 1)

    def flops_per_example(self) -> float:
        """FLOPs of one example, forward: matrix products alone, attention in full although half may be masked.

        This is the count of "model FLOPs" of Narayanan et al. 2021 and Chowdhery et al. 2022 (a third of theirs, which
        are of training): 2 per multiplication and addition, 4 s per head number for attention to s words.
        """
        weights = self.attentions * self.attention_parameters
        weights += (self.layers - self.routed_layers) * self.ffn_parameters
        weights += self.routed_layers * (self.choices * self.expert_parameters + self.hidden * self.experts)
        return 2.0 * self.sequence * weights + self._core_flops + self._head_flops

    def again_flops_per_example(self, remat: str) -> float:
        """FLOPs of one example that the backward pass computes again.

        Args:
          remat: ``full`` is all but the output layer, ``selective`` the core of attention, ``none`` nothing.
        """
        if remat == "full":
            return self.flops_per_example() - self._head_flops
        return self._core_flops if remat == "selective" else 0.0

    @property
    def _core_flops(self) -> float:
        return 4.0 * self.sequence**2 * self.heads * self.head_size * self.attentions

    @property
    def _head_flops(self) -> float:
        return 2.0 * self.sequence * self.vocab * self.hidden


def padded(count: int, multiple: int) -> int:
    """``count`` rounded up to a multiple.

    >>> padded(50_257, 1024)
    51200
    """
    return math.ceil(count / multiple) * multiple


_MAY_BE_ZERO = frozenset({"positions", "encoder_layers", "source_vocab", "experts"})
