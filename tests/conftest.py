"""Eight CPU devices for every test, and compilation that is quick."""

import gc
import importlib.metadata
import os

# Tests compile much and compute little: leave out what makes code fast.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if importlib.metadata.version("jax").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # gone in later versions
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
os.environ["JAX_PLATFORMS"] = "cpu"

# Tracing makes many objects and few cycles: to look for them seldom saves a seventh of the time.
gc.set_threshold(200_000, 50, 1000)
