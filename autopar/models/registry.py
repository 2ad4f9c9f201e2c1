"""The table of model families, and how to ask it for one."""

from typing import Any

from autopar.models.families import (
    amoebanet,
    bert,
    brainformer,
    conformer,
    deepseek,
    efficientdet,
    efficientnet,
    glam,
    gpt,
    gshard,
    gspmd_dense,
    legonn,
    llama,
    mlp,
    moe,
    palm,
    parallel_track,
    resnet,
    seq2seq,
    transformer_l,
    vmoe,
    w2v_bert,
)
from autopar.models.recipe import Family, Recipe, unknown

_FAMILIES = (
    mlp.FAMILY,
    gpt.UNROLLED,
    gpt.SCANNED,
    bert.FAMILY,
    moe.FAMILY,
    glam.FAMILY,
    gshard.FAMILY,
    seq2seq.FAMILY,
    llama.UNROLLED,
    llama.SCANNED,
    resnet.CONVNET,
    resnet.WIDE,
    conformer.FAMILY,
    w2v_bert.FAMILY,
    legonn.FAMILY,
    amoebanet.FAMILY,
    efficientnet.FAMILY,
    efficientdet.FAMILY,
    gspmd_dense.UNROLLED,
    gspmd_dense.SCANNED,
    palm.UNROLLED,
    palm.SCANNED,
    transformer_l.DECODER,
    transformer_l.TRANSLATION,
    deepseek.FAMILY,
    vmoe.FAMILY,
    brainformer.FAMILY,
    parallel_track.FAMILY,
)

MODELS: dict[str, Family] = {family.name: family for family in _FAMILIES}


def get(name: str, preset: str = "toy", **sizes: Any) -> Recipe:
    """Builds a recipe by name.

    Args:
        name: a key of `MODELS`, optionally with the preset after a colon ("gpt:1.3b").
        preset: which of the family's sizes; "toy" trains a step in milliseconds on one core.
        **sizes: fields of the family's config to replace: `layers=4`, `batch_size=8`, `dtype="float64"`,
            `optimizer="adafactor"`, ...

    Returns:
        The recipe.

    Raises:
        ValueError: for an unknown name, preset or size, naming the nearest that exist.

    Example:
        >>> get("gpt", preset="1.3b", batch_size=64).parameter_count() // 10**6
        1315
    """
    family, _, suffix = name.partition(":")
    if family not in MODELS:
        raise ValueError(unknown("model", family, MODELS))
    return MODELS[family](suffix or preset, **sizes)
