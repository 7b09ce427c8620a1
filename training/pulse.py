"""Whether the other hosts live: who loses one says so and ends, instead of waiting in a collective.

Every process holds a connection to process 0. A host whose process is killed closes its own, one
that loses its power stops answering; process 0 tells the others. JAX's heartbeat, which aborts
without a word, stays behind this for where no connection can be made.
"""

import contextlib
import json
import logging
import secrets
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Any

import jax

from errors import DistributedError, Preempted
from training import distributed
from training.lock import machine
from training.run import RunFolder
from training.watchdog import end

LOGGER = logging.getLogger("isoflop")
JOIN = 20  # seconds for all connections
GRACE = 2.0  # seconds for what ended another host with an error to end this one in its own way
SILENT = (5, 3, 3)  # TCP keep-alive: seconds until the first probe, between probes, probes
MOST = 1000  # characters of an error that is told
ROUTE = ("192.0.2.1", 9)  # an address for documentation (RFC 5737): nothing is sent there

Word = dict[str, Any]  # {} is a goodbye; else {"said": what happened, "wait": seconds}


class Pulse:
    """In a `with`, on all processes alike: when another is gone, this one ends with
    DistributedError's code. What ends without an error, or is preempted, says goodbye."""

    def __init__(self, run: RunFolder):
        self._run = run
        self._links: dict[int, socket.socket] = {}  # by process; of process 0: all the others
        self._over = threading.Event()

    def __enter__(self) -> "Pulse":
        if jax.process_count() == 1:
            return self
        self._links = _connected()
        reached = distributed.gathered(len(self._links))
        if silent := [i for i, links in enumerate(reached) if not links]:
            for link in self._links.values():
                link.close()
            self._links = {}
            LOGGER.warning(
                "no connection from process %s to process 0: if a host dies, JAX ends the others "
                "after %d s",
                *(", ".join(map(str, silent)), distributed.HEARTBEAT),
            )
        if self._links:
            threading.Thread(target=self._listen, name="pulse", daemon=True).start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        calm = error is None or isinstance(error, Preempted)
        said = f"process {jax.process_index()} ended: {type(error).__name__}: {error}"[:MOST]
        self._tell({} if calm else {"said": said, "wait": GRACE})

    def _listen(self) -> None:
        """Until all have said goodbye, or this process ends."""
        with selectors.DefaultSelector() as selector:
            for number, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)  # one word is all that there is
                    if word := _heard(self._links[key.data], key.data):
                        self._end(word, key.data)

    def _end(self, word: Word, sender: int) -> None:
        if self._over.is_set():
            return
        if distributed.first():
            self._tell(word, but=sender)
        if self._over.wait(word["wait"]):
            return
        error = DistributedError(
            f"{word['said']}; start all hosts again: the run goes on from its last checkpoint"
        )
        end(self._run, error)

    def _tell(self, word: Word, but: int = -1) -> None:
        for number, link in self._links.items():
            if number != but:
                with contextlib.suppress(OSError):
                    link.sendall(json.dumps(word).encode() + b"\n")


def _connected() -> dict[int, socket.socket]:
    """Of process 0 a connection to each of the others, of these one to process 0; none where that
    cannot be. All processes call this."""
    here = machine()
    near = all(other == here for other in distributed.gathered(here))
    if not distributed.first():
        return _reached(**distributed.gathered(None)[0])
    token, links = secrets.token_hex(), dict[int, socket.socket]()
    with contextlib.ExitStack() as stack:
        server, at = None, None
        with contextlib.suppress(OSError):
            address = ("127.0.0.1" if near else _address(), 0)
            server = stack.enter_context(socket.create_server(address, backlog=jax.process_count()))
            at = server.getsockname()
        distributed.gathered({"at": at, "token": token})
        if server:
            links = _accepted(server, token)
    return links if len(links) == jax.process_count() - 1 else {}


def _reached(at: list[Any] | None, token: str) -> dict[int, socket.socket]:
    if at is None:
        return {}
    try:
        link = socket.create_connection(tuple(at), timeout=JOIN)
        link.sendall(f"{token} {jax.process_index()}\n".encode())
    except OSError:
        return {}
    return {0: _kept(link)}


def _accepted(server: socket.socket, token: str) -> dict[int, socket.socket]:
    """Connections by process, of those that know the token, as they come within JOIN seconds."""
    links, deadline = dict[int, socket.socket](), time.monotonic() + JOIN
    while len(links) < jax.process_count() - 1 and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        with contextlib.suppress(OSError):
            link, _ = server.accept()
            link.settimeout(1)
            said = _line(link).split()
            if len(said) == 2 and said[0] == token and said[1].isdigit():
                links[int(said[1])] = _kept(link)
            else:
                link.close()
    return links


def _kept(link: socket.socket) -> socket.socket:
    """Blocking, and closed by the kernel if the other machine stops answering."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        for name, value in zip(names, SILENT, strict=True):
            link.setsockopt(socket.IPPROTO_TCP, name, value)
    return link


def _heard(link: socket.socket, sender: int) -> Word:
    """A word, or what its absence means."""
    try:
        line = _line(link)
        return dict(json.loads(line)) if line else _gone(sender)
    except (OSError, ValueError):
        return _gone(sender)


def _gone(sender: int) -> Word:
    return {"said": f"process {sender} is gone", "wait": 0}


def _line(link: socket.socket) -> str:
    """Up to a line's end, which is where every word ends."""
    text = b""
    while not text.endswith(b"\n") and len(text) < 10 * MOST:
        piece = link.recv(1000)
        if not piece:
            break
        text += piece
    return text.decode(errors="replace").strip()


def _address() -> str:
    """Of this machine, as others see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ROUTE)
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
