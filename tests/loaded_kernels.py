"""Loads the compiled kernels of the host into a process whose forks are runs: half a second of each of them."""

import gc

from swapfast.augment.kernels.jit import HOST_KERNELS, load_kernels

for _name in HOST_KERNELS:
    load_kernels(_name)
gc.collect()
gc.freeze()  # or each fork's own collections write to all that it shares
