"""Processes that find each other by flags say so before JAX does, which would abort without a word.

Process 0 listens where JAX's coordinator will; the others say their number. When all are there, it
tells them so and makes room for the coordinator. Whoever waits too long learns who is missing.
"""

import contextlib
import ipaddress
import socket
import time

from errors import ConfigError, DistributedError

PAUSE = 0.3  # seconds between attempts to reach process 0
GO = "go"


def roll_call(host: str, port: int, process: int, processes: int, timeout: float) -> None:
    """Return when all processes are there; DistributedError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    if process == 0:
        _lead(host, port, processes, deadline, timeout)
    else:
        _answer(host, port, process, processes, deadline, timeout)


def _lead(host: str, port: int, processes: int, deadline: float, timeout: float) -> None:
    try:
        server = _server(host, port)
    except OSError as error:
        raise ConfigError(
            f"--coordinator: port {port} cannot be listened on ({error.strerror}); choose another"
        ) from error
    present: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as stack:
        while len(present) < processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                link = stack.enter_context(server.accept()[0])
                link.settimeout(max(deadline - time.monotonic(), 1))
                number, world = map(int, _line(link).split())
                if 0 < number < processes and world == processes:
                    present[number] = link
                else:
                    link.sendall(f"wrong: process 0 has --processes={processes}\n".encode())
        absent = sorted(set(range(1, processes)) - present.keys())
        said = f"process {', '.join(map(str, absent))} of {processes} did not come"
        for link in present.values():
            with contextlib.suppress(OSError):
                link.sendall(f"{said if absent else GO}\n".encode())
    if absent:
        raise DistributedError(_late(timeout, said))


def _answer(
    host: str, port: int, process: int, processes: int, deadline: float, timeout: float
) -> None:
    why = "no answer"
    while time.monotonic() < deadline:
        try:
            left = max(deadline - time.monotonic(), 1)
            with socket.create_connection((host, port), timeout=left) as link:
                link.sendall(f"{process} {processes}\n".encode())
                link.settimeout(left + 5)
                said = _line(link)
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(PAUSE)
            continue
        if said == GO:
            return
        if said:
            raise DistributedError(_late(timeout, said))
        time.sleep(PAUSE)
    raise DistributedError(_late(timeout, f"the coordinator {host}:{port} was not reached ({why})"))


def _server(host: str, port: int) -> socket.socket:
    """A name may be that of one address among several: all of them are listened on."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback and "." in host:
            return socket.create_server((host, port))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _line(link: socket.socket) -> str:
    with link.makefile() as file:
        return file.readline(200).strip()


def _late(timeout: float, said: str) -> str:
    return f"after {timeout:.0f} s {said}; start all processes, and see that the port is open"
