"""From a plan and the traced step to SPMD programs with explicit collectives."""
