"""The network address and interface of this machine by which the other nodes of a Slurm step reach it."""

import fcntl
import os
import socket
import struct
from contextlib import suppress


def use_own_interface() -> None:
    """Tells gloo the network interface by which the step's first node is reached.

    Left alone it takes the address of the host's name, on Debian 127.0.1.1, which other nodes cannot reach.
    """
    interface = _interface_of(own_address())
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def own_address() -> str:
    """The address from which this machine reaches srun's, whatever its own name resolves to; nothing is sent."""
    peer = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return probe.getsockname()[0]


def _interface_of(address: str) -> str | None:
    """The network interface that has the IPv4 `address`."""
    get_address = 0x8915  # Linux's SIOCGIFADDR, which fails for an interface without one
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                found = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None
