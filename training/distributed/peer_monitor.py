"""Monitors the other processes: if one dies, all end instead of waiting in a collective.

Every process holds a connection to process 0. A killed process closes its connection, and a host
without power stops answering; process 0 then notifies the others. JAX's heartbeat, which aborts
without a message, remains active for processes that cannot connect.
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

import jax

from errors import DistributedError, PreemptedError
from settings.json_types import JsonObject
from settings.types import is_digits
from training.distributed import multihost
from training.distributed.watchdog import abort_process
from training.run.folder import RunFolder
from training.run.lock import machine_id

LOGGER = logging.getLogger("isoflop")
CONNECT_SECONDS = 20  # seconds until all connections must exist
# Seconds that the cause of another host's error has to end this process with its own error.
GRACE_SECONDS = 2.0
TCP_KEEPALIVE = (5, 3, 3)  # seconds until the first probe, seconds between probes, probes
MAX_MESSAGE_CHARS = 1000  # maximum length of an error that is sent
PROBE_ADDRESS = ("192.0.2.1", 9)  # an address for documentation (RFC 5737): nothing is sent there

# {} announces a normal end; else {"reason": description, "wait_seconds": delay before ending}.
PeerMessage = JsonObject


class PeerMonitor:
    """Ends this process with DistributedError's code when another process has died.

    It is a context manager that all processes enter together. A process that ends without an error
    or is preempted announces a normal end, which ends no other process.
    """

    def __init__(self, run: RunFolder):
        self._run = run
        self._connections: dict[int, socket.socket] = {}  # by process number; see _connect_peers
        self._closed = threading.Event()

    def __enter__(self) -> "PeerMonitor":
        if jax.process_count() == 1:
            return self
        self._connections = _connect_peers()
        num_links = multihost.all_gather_object(len(self._connections))
        if unreachable := [i for i, n in enumerate(num_links) if not n]:
            for link in self._connections.values():
                link.close()
            self._connections = {}
            LOGGER.warning(
                "no connection from process %s to process 0: if a host dies, JAX ends the others "
                "after %d s",
                *(", ".join(map(str, unreachable)), multihost.HEARTBEAT_TIMEOUT),
            )
        if self._connections:
            threading.Thread(target=self._listen, name="peer monitor", daemon=True).start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        is_normal = error is None or isinstance(error, PreemptedError)
        reason = f"process {jax.process_index()} ended: {type(error).__name__}: {error}"
        message = {"reason": reason[:MAX_MESSAGE_CHARS], "wait_seconds": GRACE_SECONDS}
        self._send({} if is_normal else message)

    def _listen(self) -> None:
        """Receives messages until all others have ended normally, or this process ends."""
        with selectors.DefaultSelector() as selector:
            for number, link in self._connections.items():
                selector.register(link, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)  # every process sends exactly one message
                    if message := _receive(self._connections[key.data], key.data):
                        self._on_message(message, key.data)

    def _on_message(self, message: PeerMessage, sender: int) -> None:
        if self._closed.is_set():
            return
        if multihost.is_main_process():
            self._send(message, exclude=sender)
        if self._closed.wait(message["wait_seconds"]):
            return
        error = DistributedError(
            f"{message['reason']}; start all hosts again: the run resumes from its last checkpoint"
        )
        abort_process(self._run, error)

    def _send(self, message: PeerMessage, exclude: int = -1) -> None:
        for number, link in self._connections.items():
            if number != exclude:
                with contextlib.suppress(OSError):
                    link.sendall(json.dumps(message).encode() + b"\n")


def _connect_peers() -> dict[int, socket.socket]:
    """Returns the connections of this process by process number; {} if one is impossible.

    Process 0 has a connection to each of the others, which have one to process 0. All processes
    must call this together.
    """
    local_id = machine_id()
    is_one_machine = all(i == local_id for i in multihost.all_gather_object(local_id))
    if not multihost.is_main_process():
        return _connect_to_main(**multihost.all_gather_object(None)[0])
    token, links = secrets.token_hex(), dict[int, socket.socket]()
    with contextlib.ExitStack() as stack:
        server, address = None, None
        with contextlib.suppress(OSError):
            host = "127.0.0.1" if is_one_machine else _local_address()
            server = socket.create_server((host, 0), backlog=jax.process_count())
            stack.enter_context(server)
            address = server.getsockname()
        multihost.all_gather_object({"address": address, "token": token})
        if server:
            links = _accept_peers(server, token)
    return links if len(links) == jax.process_count() - 1 else {}


def _connect_to_main(address: tuple[str, int] | None, token: str) -> dict[int, socket.socket]:
    if address is None:
        return {}
    try:
        link = socket.create_connection((address[0], address[1]), timeout=CONNECT_SECONDS)
        link.sendall(f"{token} {jax.process_index()}\n".encode())
    except OSError:
        return {}
    return {0: _set_keepalive(link)}


def _accept_peers(server: socket.socket, token: str) -> dict[int, socket.socket]:
    """Accepts connections that present the token, within CONNECT_SECONDS, by process number."""
    links, deadline = dict[int, socket.socket](), time.monotonic() + CONNECT_SECONDS
    while len(links) < jax.process_count() - 1 and (remaining := deadline - time.monotonic()) > 0:
        server.settimeout(remaining)
        with contextlib.suppress(OSError):
            link, _ = server.accept()
            link.settimeout(1)
            words = _read_line(link).split()
            if len(words) == 2 and words[0] == token and is_digits(words[1]):
                links[int(words[1])] = _set_keepalive(link)
            else:
                link.close()
    return links


def _set_keepalive(link: socket.socket) -> socket.socket:
    """Makes `link` blocking; the kernel closes it if the other machine stops answering."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        for name, value in zip(names, TCP_KEEPALIVE, strict=True):
            link.setsockopt(socket.IPPROTO_TCP, name, value)
    return link


def _receive(link: socket.socket, sender: int) -> PeerMessage:
    """Reads a message; a connection that is closed or damaged means that the sender died."""
    try:
        line = _read_line(link)
        return dict(json.loads(line)) if line else _lost_message(sender)
    except (OSError, ValueError):
        return _lost_message(sender)


def _lost_message(sender: int) -> PeerMessage:
    return {"reason": f"process {sender} has died", "wait_seconds": 0}


def _read_line(link: socket.socket) -> str:
    """Reads up to the end of a line, which ends every message."""
    text = b""
    while not text.endswith(b"\n") and len(text) < 10 * MAX_MESSAGE_CHARS:
        chunk = link.recv(1000)
        if not chunk:
            break
        text += chunk
    return text.decode(errors="replace").strip()


def _local_address() -> str:
    """Returns the address of this machine at which other machines reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(PROBE_ADDRESS)
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
