"""The owners of listening ports."""

import socket

import psutil

from pipeline.errors import ConfigError


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could bind there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def owner(host: str, port: int) -> int | None:
    """Return the pid that listens on `port` at `host` or at all addresses; None where there is none or the system hides it.

    ConfigError where the host has no address here.
    """
    try:
        names = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ConfigError(f"serve.host: {host} has no address on this machine ({error})", "127.0.0.1 serves this machine alone") from error
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    addresses = {(name, port) for name in (*names, "0.0.0.0", "::")}
    return next((c.pid for c in connections if c.status == psutil.CONN_LISTEN and tuple(c.laddr) in addresses and c.pid), None)


def describe_owner(host: str, port: int) -> str:
    """Return a description of the process that listens on `port`."""
    pid = owner(host, port)
    if pid is None:
        return "a process of another user or a container (see `sudo ss -ltnp`)"
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline())[:80] or process.name()
        return f"pid {pid} ({command}), user {process.username()}"
    except psutil.Error:
        return f"pid {pid}"
