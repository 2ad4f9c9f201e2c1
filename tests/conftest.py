"""Eight devices on the CPU, and 64-bit types: tight comparisons tell a bug from a reordering."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
