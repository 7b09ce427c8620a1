"""Eight CPU devices for every test, and tiny models to share."""

import os

# Tests compile much and compute little: leave out what makes code fast.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"
