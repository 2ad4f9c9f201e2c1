"""Random keys pass between programs as the words that they are made of."""

KEY_IMPLS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
"""Dtype of random keys -> the implementation that makes keys of their words."""

__all__ = ["KEY_IMPLS"]
