"""Factor rules: what each primitive does to the dims of its operands. Plain data, no jax."""

from autopar.sharding.rules.site import Site, opaque_rule
from autopar.sharding.rules.table import rule_for

__all__ = ["Site", "opaque_rule", "rule_for"]
