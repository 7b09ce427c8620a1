"""Waits until all processes are reachable, before JAX connects them; JAX aborts without a message.

Process 0 listens on the address of JAX's coordinator, and the others send their number. When all
are connected, process 0 acknowledges this and releases the port for the coordinator. After the
timeout every process raises an error that names the missing processes.
"""

import contextlib
import ipaddress
import socket
import time

from errors import ConfigError, DistributedError

RETRY_SECONDS = 0.3  # seconds between attempts to reach process 0
ACK = "go"  # process 0 sends it when all processes are connected


def rendezvous(host: str, port: int, process_id: int, num_processes: int, timeout: float) -> None:
    """Returns when all processes are connected; after `timeout` seconds it is a DistributedError.

    A ConfigError is raised if process 0 cannot listen on the port.
    """
    deadline = time.monotonic() + timeout
    if process_id == 0:
        _serve(host, port, num_processes, deadline, timeout)
    else:
        _connect(host, port, process_id, num_processes, deadline, timeout)


def _serve(host: str, port: int, num_processes: int, deadline: float, timeout: float) -> None:
    try:
        server = _create_server(host, port)
    except OSError as error:
        raise ConfigError(
            f"--coordinator_address: process 0 cannot listen on port {port} ({error.strerror}); "
            "choose another port"
        ) from error
    links: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as stack:
        while len(links) < num_processes - 1 and (remaining := deadline - time.monotonic()) > 0:
            server.settimeout(remaining)
            with contextlib.suppress(OSError, ValueError):
                link = stack.enter_context(server.accept()[0])
                link.settimeout(max(deadline - time.monotonic(), 1))
                number, world = map(int, _read_line(link).split())
                if 0 < number < num_processes and world == num_processes:
                    links[number] = link
                else:
                    link.sendall(f"wrong: process 0 has --num_processes={num_processes}\n".encode())
        missing = sorted(set(range(1, num_processes)) - links.keys())
        problem = f"process {', '.join(map(str, missing))} of {num_processes} did not connect"
        for link in links.values():
            with contextlib.suppress(OSError):
                link.sendall(f"{problem if missing else ACK}\n".encode())
    if missing:
        raise DistributedError(_timeout_message(timeout, problem))


def _connect(
    host: str, port: int, process_id: int, num_processes: int, deadline: float, timeout: float
) -> None:
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            remaining = max(deadline - time.monotonic(), 1)
            with socket.create_connection((host, port), timeout=remaining) as link:
                link.sendall(f"{process_id} {num_processes}\n".encode())
                link.settimeout(remaining + 5)
                answer = _read_line(link)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(RETRY_SECONDS)
            continue
        if answer == ACK:
            return
        if answer:
            raise DistributedError(_timeout_message(timeout, answer))
        time.sleep(RETRY_SECONDS)
    raise DistributedError(
        _timeout_message(timeout, f"the coordinator {host}:{port} was not reached ({reason})")
    )


def _create_server(host: str, port: int) -> socket.socket:
    """Listens on all addresses, because a host name may stand for one of several addresses."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback and "." in host:
            return socket.create_server((host, port))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _read_line(link: socket.socket) -> str:
    with link.makefile() as file:
        return file.readline(200).strip()


def _timeout_message(timeout: float, problem: str) -> str:
    return f"after {timeout:.0f} s {problem}; start all processes, and check that the port is open"
