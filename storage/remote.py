"""A folder of an object store (`s3://`, `gs://`): whole objects, written at once or not at all.

fsspec reaches the stores. Credentials and endpoints come from the usual variables and files of
s3fs and gcsfs. Every failure is a DiskError of one line that names the URL.
"""

import contextlib
import datetime
import importlib
import logging
import re
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from errors import DiskError

URL_PATTERN = re.compile(r"(s3|gs|memory):/+(?=[^/])")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}  # the packages behind the protocols, in extra `remote`
# What identifies the content of an object, in the names of S3, Google Cloud Storage and memory.
VERSION_KEYS = ("ETag", "etag", "generation", "created")
TIME_KEYS = ("LastModified", "mtime", "created")  # when it was written


class RemoteObject(NamedTuple):
    """An object as it is listed."""

    size: int
    version: str  # differs if the content differs
    modified: float  # seconds since 1970 by the clock of the store


class RemoteFolder:
    """The objects below a URL, by their names relative to it."""

    def __init__(self, url: str):
        self.url = normalize_url(url)
        protocol = self.url.partition(":")[0]
        with store_errors(self.url):
            library = importlib.import_module("fsspec")
            # Listings must be current, since other processes write to the same folder.
            self._fs: Any = library.filesystem(protocol, use_listings_cache=False)
            self._root = self._fs._strip_protocol(self.url).rstrip("/")
        # It logs a hint at missing credentials for every object, and each error with a traceback.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

    def list(self, below: str = "") -> dict[str, RemoteObject]:
        """Returns the objects in the folder, or in its subfolder `below`; "" names a single one.

        Raises:
            DiskError: if the store cannot be listed, for example because the bucket is missing.
        """
        with store_errors(self._join(below)):
            listing = self._fs.find(self._path(below), detail=True)
        objects = {}
        for path, info in listing.items():
            version = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
            item = RemoteObject(info["size"], version, _modified_time(info))
            if path == self._root:
                objects[""] = item
            elif path.startswith(f"{self._root}/"):
                objects[path[len(self._root) + 1 :]] = item
        return {name: item for name, item in objects.items() if not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object, None if it does not exist."""
        with store_errors(self._join(name)):
            try:
                return self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Writes an object, and replaces an earlier one."""
        with store_errors(self._join(name)):
            self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Writes an object unless it exists, in one operation; returns whether it was written.

        Raises:
            OSError: as a DiskError, if the store cannot be used.
        """
        with store_errors(self._join(name)):
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # S3 reports a conflict if two processes create it at once.
                if re.search("PreconditionFailed|Conflict", repr(error.__cause__)):
                    return False
                raise
            except Exception as error:
                if "412" in str(error):  # Google Cloud Storage: a generation exists
                    return False
                raise
        return True

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects in this order; one that is missing is passed over."""
        for name in names:
            with store_errors(self._join(name)), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

    def upload(self, path: Path, name: str) -> None:
        """Writes a local file as an object.

        Raises:
            FileNotFoundError: if the local file is missing, or is deleted meanwhile.
            DiskError: if the store cannot be used.
        """
        try:
            with store_errors(self._join(name)):
                self._fs.put_file(str(path), self._path(name))
        except DiskError as error:
            if not path.exists():  # this is no error of the store
                raise FileNotFoundError(path) from error
            raise

    def download(self, name: str, path: Path) -> None:
        """Writes an object to a local file, which appears when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with store_errors(self._join(name)):
            self._fs.get_file(self._path(name), str(partial))
        partial.replace(path)

    def modified_time(self, name: str) -> float:
        """Returns when an object was written, in seconds by the clock of the store."""
        with store_errors(self._join(name)):
            return _modified_time(self._fs.info(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _join(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url


def _modified_time(info: Mapping[str, Any]) -> float:
    time = next((info[key] for key in TIME_KEYS if info.get(key)), 0.0)
    return time.timestamp() if isinstance(time, datetime.datetime) else float(time)


def is_url(path: str | Path) -> bool:
    """Returns whether `path` is the URL of an object store; a Path of a URL counts as well."""
    return bool(URL_PATTERN.match(str(path)))


def normalize_url(path: str | Path) -> str:
    """Returns a URL with two slashes after the protocol, which a Path drops, and none at its end.

    Raises:
        DiskError: if `path` is no URL of an object store.
    """
    if not is_url(path):
        raise DiskError(
            f"{path} is no URL of an object store; write s3://BUCKET/FOLDER or gs://..."
        )
    return URL_PATTERN.sub(r"\1://", str(path), count=1).rstrip("/")


@contextlib.contextmanager
def store_errors(url: str) -> Generator[None, None, None]:
    """Turns whatever the libraries of a store raise into a DiskError that names `url`.

    Raises:
        DiskError: if the body fails.
    """
    try:
        yield
    except ImportError as error:
        package = PACKAGES.get(url.partition(":")[0], "fsspec")
        raise DiskError(f"{url} needs {package}: pip install 'isoflop[remote]'") from error
    except Exception as error:  # botocore, aiohttp and google.auth have no common class
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise DiskError(f"{url}: {_describe(error, reason)}") from error


def _describe(error: Exception, reason: str) -> str:
    names = " ".join(f"{cls.__module__}.{cls.__name__}" for cls in type(error).__mro__)
    if isinstance(error, FileNotFoundError):
        return f"the bucket or the object does not exist ({reason}); create it, or correct the URL"
    if isinstance(error, PermissionError) or "403" in reason:
        return (
            f"access is refused ({reason}); use credentials that have not expired and may read "
            "and write there"
        )
    if "Credential" in names or "google.auth" in names:
        return f"there are no valid credentials ({reason}); provide those of the store"
    return f"the store cannot be used ({reason}); check the network and the endpoint, and try again"
