"""Models of the zoo, as sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from autopar.errors import OptionError, nearest
from autopar.models import MODELS, Config
from autopar.models.families.amoebanet import AmoebaNetConfig
from autopar.models.families.glam import GLaMConfig
from autopar.models.families.gpt import GPTConfig
from autopar.models.families.gshard import GShardConfig
from autopar.models.families.llama import LlamaConfig
from autopar.models.families.moe import MoEConfig
from autopar.models.families.palm import PaLMConfig
from autopar.models.families.seq2seq import Seq2SeqConfig
from autopar.prediction import Chain, Sizes
from autopar.sizing.convolutions import amoebanet


def sizes_of(name: str, **changes: Any) -> tuple[Sizes | Chain, int]:
    """The sizes of a model of the zoo, and the batch that its preset trains on.

    Args:
      name: family and preset: ``gpt:39b``; a family alone is its ``toy``.
      **changes: fields of the preset's config, such as ``sequence=2048``.

    Raises:
      OptionError: there is no such model, preset or size, or its kind is not predicted.

    >>> sizes_of("gpt:39b")[0].layers, sizes_of("amoebanet:18-256")[1]
    (48, 128)
    """
    family, _, preset = name.partition(":")
    if family not in MODELS:
        raise OptionError(f"unknown model {family!r}: {nearest(family, MODELS)}")
    presets = MODELS[family].presets
    preset = preset or "toy"
    if preset not in presets:
        raise OptionError(f"unknown preset {preset!r} of {family!r}: {nearest(preset, presets)}")
    config = presets[preset]
    for field in changes:
        if field not in (known := [one.name for one in fields(config)]):
            raise OptionError(f"unknown size {field!r} of {family!r}: {nearest(field, known)}")
    try:
        config = replace(config, **changes)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name}: {error}") from None
    for kind, convert in _KINDS.items():
        if type(config) is kind:
            return convert(name, config), config.batch_size
    known = [one.name for one in MODELS.values() if type(one.presets["toy"]) in _KINDS]
    raise OptionError(
        f"{family!r} is neither a plain transformer nor a chain of blocks, so it has no sizes to predict from; these "
        f"have: {', '.join(known)}. Or give sizes of your own, or a Chain"
    )


def _shared(name: str, config: Config) -> dict[str, Any]:
    return {"name": name, "dtype": config.dtype, "optimizer": config.optimizer}


def _gpt(name: str, c: GPTConfig) -> Sizes:
    return Sizes(
        hidden=c.hidden,
        layers=c.layers,
        heads=c.heads,
        head=c.head,
        ffn=c.ffn_factor * c.hidden,
        sequence=c.sequence,
        vocab=c.vocab,
        tied=c.tied,
        positions=0 if c.sines else c.sequence,
        dropout=c.dropout > 0,
        **_shared(name, c),
    )


def _llama(name: str, c: LlamaConfig) -> Sizes:
    return Sizes(
        hidden=c.hidden,
        layers=c.layers,
        heads=c.heads,
        kv_heads=c.kv_heads,
        ffn=c.ffn,
        gated=True,
        sequence=c.sequence,
        vocab=c.vocab,
        tied=c.tied,
        **_shared(name, c),
    )


def _palm(name: str, c: PaLMConfig) -> Sizes:
    return Sizes(
        hidden=c.hidden,
        layers=c.layers,
        heads=c.heads,
        head=c.head,
        kv_heads=1,
        ffn=c.ffn_factor * c.hidden,
        gated=True,
        one_norm=True,
        sequence=c.sequence,
        vocab=c.vocab,
        **_shared(name, c),
    )


def _gshard(name: str, c: GShardConfig) -> Sizes:
    if c.source != c.target:
        raise OptionError(
            f"{name}: source={c.source} and target={c.target}; a prediction has one length for both sides"
        )
    return Sizes(
        hidden=c.hidden,
        layers=c.layers,
        encoder_layers=c.layers // 2,
        heads=c.heads,
        head=c.head,
        ffn=c.ffn,
        sequence=c.source,
        vocab=c.target_vocab,
        source_vocab=c.source_vocab,
        dropout=c.dropout > 0,
        **_experts(c, 2),
        **_shared(name, c),
    )


def _glam(name: str, c: GLaMConfig) -> Sizes:
    return Sizes(
        hidden=c.hidden,
        layers=c.layers,
        heads=c.heads,
        head=c.head,
        ffn=c.ffn,
        gated=True,
        gated_experts=False,
        sequence=c.sequence,
        vocab=c.vocab,
        **_experts(c, 2),
        **_shared(name, c),
    )


def _moe(name: str, c: MoEConfig) -> Sizes:
    if c.shared_experts:
        raise OptionError(f"{name}: shared_experts={c.shared_experts} are not predicted; take 0")
    return Sizes(
        hidden=c.hidden,
        layers=c.layers,
        heads=c.heads,
        ffn=c.ffn_factor * c.hidden,
        sequence=c.sequence,
        vocab=c.vocab,
        positions=c.sequence,
        **_experts(c, 2),
        **_shared(name, c),
    )


def _experts(c: GShardConfig | GLaMConfig | MoEConfig, every: int) -> dict[str, Any]:
    spec = c.spec
    return {
        "experts": spec.experts,
        "expert_every": every,
        "choices": spec.choices,
        "capacity_factor": spec.capacity_factor,
        "group": spec.group,
    }


def _seq2seq(name: str, c: Seq2SeqConfig) -> Sizes:
    if c.source != c.target or c.frozen:
        raise OptionError(
            f"{name}: source={c.source}, target={c.target} and frozen={c.frozen!r}; a prediction has one length for "
            "both sides, and trains all of a model. Set source and target alike"
        )
    return Sizes(
        hidden=c.hidden,
        layers=c.layers + c.decoder_layers,
        encoder_layers=c.layers,
        heads=c.heads,
        head=c.head,
        ffn=c.ffn_factor * c.hidden,
        sequence=c.source,
        vocab=c.vocab,
        tied=c.tied,
        source_vocab=0 if c.tied else c.vocab,
        dropout=c.dropout > 0,
        **_shared(name, c),
    )


_KINDS: Mapping[type, Callable[[str, Any], Sizes | Chain]] = {
    GPTConfig: _gpt,
    LlamaConfig: _llama,
    PaLMConfig: _palm,
    GShardConfig: _gshard,
    GLaMConfig: _glam,
    MoEConfig: _moe,
    Seq2SeqConfig: _seq2seq,
    AmoebaNetConfig: amoebanet,
}
