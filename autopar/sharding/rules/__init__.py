"""Factor rules: what each primitive does to the dims of its operands. Plain data, no jax."""

from autopar.sharding.rules.indexing import mode_name
from autopar.sharding.rules.site import Site, opaque_rule
from autopar.sharding.rules.table import TABLE, rule_for
from autopar.sharding.rules.user import register_rule, unregister_rule
from autopar.sharding.rules.windowed import conv_windows, pool_windows

__all__ = [
    "TABLE", "Site", "conv_windows", "mode_name", "opaque_rule", "pool_windows", "register_rule", "rule_for",
    "unregister_rule",
]  # fmt: skip
