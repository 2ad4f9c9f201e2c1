"""Eight devices on the CPU, and 64-bit types: tight comparisons tell a bug from a reordering.

Most of the time of the tests is LLVM's, so it is asked not to optimise; what XLA makes of a program before is as ever.
"""

import os

import jax

os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
