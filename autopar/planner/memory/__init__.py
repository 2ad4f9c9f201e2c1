"""Memory of one device, predicted as XLA allocates it.

What is stored (fusion) -> kernels -> the order in which they run -> when each buffer is held (profile) -> packing.
"""

from autopar.planner.memory.profile import Lifetime, Profile, argument_kinds, lifetimes, local_bytes, profile

__all__ = ["Lifetime", "Profile", "argument_kinds", "lifetimes", "local_bytes", "profile"]
