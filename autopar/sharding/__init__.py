"""Legal layouts: placements, the steps between them, and the strategies that a rule allows. No jax."""
