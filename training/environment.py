"""What a run ran on: code, packages, devices and the variables that steer them, without secrets.

Only the environment variables named here are recorded. Values that look like credentials are
replaced by "[redacted]" wherever they stand: in the command line, in settings, in tracebacks.
"""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from training.files import plain

FORMAT = 1  # of run.json
ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("isoflop", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain"),
    *("tokenizers", "ml-collections", "libtpu", "jax-cuda13-plugin", "tokamax"),
)
PREFIXES = ("JAX_", "XLA_", "NCCL_", "CUDA_VISIBLE_DEVICES", "LIBTPU_INIT_ARGS", "OMP_NUM_THREADS")
KERNELS = ("ipykernel_launcher.py", "colab_kernel_launcher.py")
SECRET = r"(?:token|secret|passw(?:or)?d|api_?key|key|credentials?)"
NAMES_SECRET = re.compile(rf"(?:^|[_.-]){SECRET}$", re.IGNORECASE)
KEPT = r"\1[redacted]"
CREDENTIALS = (
    (r"((?<=://))[^/\s@'\"]+(?=@)", KEPT),  # https://user:password@host
    (r"([?&][\w.-]*(?:token|secret|key|sig|signature|credential)=)[^&\s'\"]+", KEPT),
    (rf"((?:^|[\s;])--?[\w.-]*{SECRET}[= ])\S+", KEPT),
    # Those that random letters follow: names such as hf_wikitext or sk-learn-20newsgroups stay.
    (r"(\bBearer\s+)(?=\S*\d)[\w.~+/=-]{16,}", KEPT),
    (r"(\b(?:hf_|gh[a-z]_))[a-z0-9]{30,}", KEPT),
    (r"(\b(?:github_pat_|xox[a-z]-|sk-))(?=\S*\d)[\w-]{32,}", KEPT),
    (r"(\b(?:glpat-|AKIA|AIza))[\w-]{16,}", KEPT),
)


def describe(
    *,
    settings: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    cost: Mapping[str, Any],
    mesh: Mapping[str, int],
    flags: Mapping[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What run.json says of a new run here and now; `fingerprints` are of data and tokenizer."""
    devices = jax.devices()
    record = {
        "format": FORMAT,
        "run_id": secrets.token_hex(8),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(typed() if command is None else command),
        "flags": flags,
        "settings": settings,
        "fingerprints": fingerprints,
        "cost": cost,
        "code": code_version(),
        "packages": packages(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "mesh": mesh,
        "environment": environment(),
    }
    return redacted(plain(record))


def typed() -> list[str]:
    """The words of the command line; none in a notebook, whose kernel no one typed."""
    return [] if Path(sys.argv[0]).name in KERNELS else sys.argv


def environment() -> dict[str, str]:
    """The variables that change what jax does."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES)}


def packages() -> dict[str, str]:
    """Versions of the packages that numbers may depend on, as far as they are installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def code_version(root: Path = ROOT) -> dict[str, Any]:
    """Commit and hash of what differs from it, where `root` is the top of a git checkout."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top.decode().strip()).resolve() != root.resolve():
        return {"version": packages().get("isoflop", "unknown")}
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    changes = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv")
    fresh = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py", "*.toml")
    digest = hashlib.sha256(changes)
    for name in sorted(filter(None, fresh.split(b"\0"))):
        path = root / os.fsdecode(name)
        if path.is_file() and not path.is_symlink():
            digest.update(name + b"\0" + path.read_bytes())
    dirty = bool(changes or fresh)
    return {"commit": commit, "dirty": dirty, "changes": digest.hexdigest() if dirty else ""}


def redacted(value: Any, name: str = "") -> Any:
    """`value` (JSON) without credentials; `name` is the key it stands under."""
    if isinstance(value, Mapping):
        return {key: redacted(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        after = ["", *value]  # `--token`, `xyz` are two words of a command
        return [
            redacted(item, last.lstrip("-") if isinstance(last, str) and last[:1] == "-" else "")
            for last, item in zip(after, value, strict=False)
        ]
    if not isinstance(value, str) or not value:
        return value
    return "[redacted]" if NAMES_SECRET.search(name) else without_credentials(value)


def without_credentials(text: str) -> str:
    for pattern, instead in CREDENTIALS:
        text = re.sub(pattern, instead, text, flags=re.IGNORECASE)
    return text


def _git(root: Path, *arguments: str) -> bytes:
    """What git prints, b"" where it fails or is not installed."""
    command = ["git", "-C", str(root), *arguments]
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        run = subprocess.run(command, capture_output=True, timeout=20, env=variables, check=True)
    except (OSError, subprocess.SubprocessError):
        return b""
    return run.stdout
