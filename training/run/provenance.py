"""Records what a run ran on: code, packages, devices and the variables that configure them.

Only the environment variables named here are recorded. Values that look like credentials are
replaced by "[redacted]" everywhere: in the command line, in settings, in tracebacks.
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

from settings.json_types import JsonObject
from settings.run_json import RUN_FORMAT
from training.run.strict_json import to_json_value

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("isoflop", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain"),
    *("tokenizers", "ml-collections", "libtpu", "jax-cuda13-plugin", "tokamax"),
)
VARIABLE_PREFIXES = (
    "JAX_",
    "XLA_",
    "NCCL_",
    "CUDA_VISIBLE_DEVICES",
    "LIBTPU_INIT_ARGS",
    "OMP_NUM_THREADS",
)
NOTEBOOK_KERNELS = ("ipykernel_launcher.py", "colab_kernel_launcher.py")
SECRET_WORDS = r"(?:token|secret|passw(?:or)?d|api_?key|key|credentials?)"
SECRET_NAME = re.compile(rf"(?:^|[_.-]){SECRET_WORDS}$", re.IGNORECASE)
REDACTION = r"\1[redacted]"
CREDENTIAL_PATTERNS = (
    (r"((?<=://))[^/\s@'\"]+(?=@)", REDACTION),  # https://user:password@host
    (r"([?&][\w.-]*(?:token|secret|key|sig|signature|credential)=)[^&\s'\"]+", REDACTION),
    (rf"((?:^|[\s;])--?[\w.-]*{SECRET_WORDS}[= ])\S+", REDACTION),
    # Only prefixes before random letters: names such as hf_wikitext or sk-learn-20newsgroups stay.
    (r"(\bBearer\s+)(?=\S*\d)[\w.~+/=-]{16,}", REDACTION),
    (r"(\b(?:hf_|gh[a-z]_))[a-z0-9]{30,}", REDACTION),
    (r"(\b(?:github_pat_|xox[a-z]-|sk-))(?=\S*\d)[\w-]{32,}", REDACTION),
    (r"(\b(?:glpat-|AKIA|AIza))[\w-]{16,}", REDACTION),
)


def make_run_record(
    *,
    settings: Mapping[str, object],
    fingerprints: Mapping[str, str],
    cost: Mapping[str, object],
    mesh: Mapping[str, int],
    flags: Mapping[str, object],
    data: Mapping[str, object] | None = None,
    energy: str = "",
    command: Sequence[str] | None = None,
) -> JsonObject:
    """Returns the content of run.json for a new run.

    `fingerprints` are of data and tokenizer; `energy` says how the energy of training is known.
    """
    devices = jax.devices()
    record = {
        "format": RUN_FORMAT,
        "run_id": secrets.token_hex(8),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command_line() if command is None else command),
        "flags": flags,
        "settings": settings,
        "fingerprints": fingerprints,
        "data": data or {},
        "cost": cost,
        "code": code_version(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "mesh": mesh,
        "environment": environment_variables(),
        "energy": energy,
    }
    return redact(to_json_value(record))


def command_line() -> list[str]:
    """Returns the words of the command line; [] in a notebook, where no user typed them."""
    return [] if Path(sys.argv[0]).name in NOTEBOOK_KERNELS else sys.argv


def environment_variables() -> dict[str, str]:
    """Returns the environment variables that change the behavior of jax."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLE_PREFIXES)}


def package_versions() -> dict[str, str]:
    """Returns the versions of the installed packages on which results may depend."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def code_version(root: Path = ROOT) -> JsonObject:
    """Returns the commit of `root` and a hash of the uncommitted changes.

    Where `root` is not the top folder of a git checkout, it returns the installed version.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top.decode().strip()).resolve() != root.resolve():
        return {"version": package_versions().get("isoflop", "unknown")}
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    changes = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv")
    untracked = _git(
        root, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py", "*.toml"
    )
    digest = hashlib.sha256(changes)
    for name in sorted(filter(None, untracked.split(b"\0"))):
        path = root / os.fsdecode(name)
        if path.is_file() and not path.is_symlink():
            digest.update(name + b"\0" + path.read_bytes())
    dirty = bool(changes or untracked)
    return {"commit": commit, "dirty": dirty, "diff_sha256": digest.hexdigest() if dirty else ""}


def redact(value: object, name: str = "") -> Any:
    """Returns the JSON `value` without credentials; `name` is its key in the enclosing object."""
    if isinstance(value, Mapping):
        return {key: redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        previous_items = ["", *value]  # `--token` and `xyz` may be two words of a command
        return [
            redact(item, word.lstrip("-") if isinstance(word, str) and word[:1] == "-" else "")
            for word, item in zip(previous_items, value, strict=False)
        ]
    if not isinstance(value, str) or not value:
        return value
    return "[redacted]" if SECRET_NAME.search(name) else redact_text(value)


def redact_text(text: str) -> str:
    """Returns `text` with everything that has the form of a credential replaced."""
    for pattern, replacement in CREDENTIAL_PATTERNS:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


def _git(root: Path, *arguments: str) -> bytes:
    """Returns the output of git, b"" if it fails or is not installed."""
    command = ["git", "-C", str(root), *arguments]
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        run = subprocess.run(command, capture_output=True, timeout=20, env=variables, check=True)
    except (OSError, subprocess.SubprocessError):
        return b""
    return run.stdout
