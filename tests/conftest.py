"""Eight CPU devices for every test, quick compilation, no program compiled twice, shared runs."""

import fcntl
import gc
import importlib.metadata
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

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
# The workers fill the cores. Further threads for small matrices wait for each other.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

# Tracing makes many objects and few cycles: to look for them seldom saves a seventh of the time.
gc.set_threshold(200_000, 50, 1000)
MAX_PROGRAMS = 300  # compiled programs that `reuse_programs` keeps
MAX_MAPPINGS = 30_000  # of memory


TESTS = itertools.count()  # tests so far
PROGRAMS: dict[Any, Any] = {}  # compiled programs by their text and devices, the last used last


def reuse_programs() -> None:
    """Makes JAX compile equal programs once per process, whichever function they come from.

    Every run of a test makes its jitted functions anew, so that JAX compiles the same text again.
    JAX's own cache on disk would find it, but programs with collectives over several CPU devices
    that are read back from there can deadlock. Here the loaded program itself is used again. There
    is no public hook: this replaces the one function that all compilations pass through.
    """
    import jax
    from jax._src import compilation_cache, compiler

    compile_program = compiler.compile_or_get_cached

    def compile_once(
        backend: Any, module: Any, devices: Any, options: Any, callbacks: Sequence[Any], *more: Any
    ) -> Any:
        def compiled() -> Any:
            return compile_program(backend, module, devices, options, callbacks, *more)

        if callbacks or jax.config.jax_compilation_cache_dir:  # the test is about that cache
            return compiled()
        text = compilation_cache.get_cache_key(module, devices, options, backend)
        key = (text, devices.shape, *(device.id for device in devices.flat))
        PROGRAMS[key] = PROGRAMS.pop(key, None) or compiled()
        if len(PROGRAMS) > MAX_PROGRAMS:
            del PROGRAMS[next(iter(PROGRAMS))]
        return PROGRAMS[key]

    compiler.compile_or_get_cached = compile_once


def pytest_runtest_setup() -> None:
    """Forgets all programs where there are many: each is several mappings of memory.

    Linux allows a process 65,530 of them, after which the compiler ends with a segmentation fault.
    """
    import jax

    maps = Path("/proc/self/maps")
    is_due = next(TESTS) % 20 == 0 and maps.exists()  # to count them takes some milliseconds
    if is_due and maps.read_bytes().count(b"\n") > MAX_MAPPINGS:
        PROGRAMS.clear()
        jax.clear_caches()
        gc.collect()


reuse_programs()


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that the first worker of the session makes, and the others wait for."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the text of `tiny_runs`; no test changes it."""
    import tiny_runs

    def make(folder: Path) -> None:
        folder.mkdir()
        tiny_runs.write_text(folder)

    return make_once(tmp_path_factory, "text", make)


@pytest.fixture(scope="session")
def finished_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps without interruption; copy it before you change it."""
    import tiny_runs

    def make(folder: Path) -> None:
        assert tiny_runs.run(*tiny_runs.text_flags(text, folder)) == 0

    return make_once(tmp_path_factory, "finished_run", make)
