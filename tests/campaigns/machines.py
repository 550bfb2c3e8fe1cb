"""Machines inside this one: each with a host name, processes and an address of its own, and all of its files.

They are Linux namespaces (UTS, PID, mount and network) on a bridge, so it takes root and the program `ip`. What is
killed with a machine is killed as by a power cut: every process of it at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

BRIDGE: Final = "vlmray"
GATEWAY: Final = "10.77.0.1"  # this machine, as the others see it
RAY_PORT: Final = 6379
SECONDS_TO_START: Final = 120.0  # for a node, on a busy machine
TEMPORARY: Final = "/tmp/of-machine"  # each machine has one of its own there


@dataclass(frozen=True)
class Machine:
    """A machine that runs a node of the cluster until it is killed."""

    name: str
    address: str
    init: subprocess.Popen[bytes]

    def start(self, command: Sequence[str], folder: Path, log: Path, surroundings: Mapping[str, str]) -> Command:
        """Start a command on it."""
        inside = next(each.pid for each in psutil.Process(self.init.pid).children())
        enter = ["nsenter", "--target", str(inside), "--uts", "--pid", "--mount", "--net", "--"]
        enter += ["sh", "-c", 'cd "$0" && exec "$@"', str(folder)]
        with log.open("ab") as output:
            process = subprocess.Popen([*enter, *command], env=dict(surroundings), stdout=output, stderr=output)
        return Command(process, log)

    def kill(self) -> None:
        """Kill the machine."""
        for inside in psutil.Process(self.init.pid).children() if self.init.poll() is None else ():
            inside.kill()  # the first process of its namespace: the kernel kills all others
        self.init.wait(10)


@dataclass(frozen=True)
class Command:
    """A command that runs on a machine."""

    process: subprocess.Popen[bytes]
    log: Path

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; `nsenter` itself passes none on."""
        for inside in psutil.Process(self.process.pid).children():
            os.kill(inside.pid, number)

    def end(self, seconds: float) -> int:
        """Return its exit code."""
        return self.process.wait(seconds)

    def text(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(errors="replace")


class Cluster:
    """A Ray cluster of one node a machine; the first one is the head."""

    def __init__(self, folder: Path, surroundings: Mapping[str, str], cpus: int = 1) -> None:
        self.machines: list[Machine] = []
        self._folder, self._surroundings, self._cpus, self._number = folder, surroundings, cpus, 10

    def add(self) -> Machine:
        """Start another machine with its node."""
        self._number += 1
        name, address = f"machine{self._number}", f"10.77.0.{self._number}"
        _ip(f"link add {name}o type veth peer name {name}i", f"link set {name}o master {BRIDGE} up")
        where = (
            ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
            if not self.machines
            else [f"--address={self.head}:{RAY_PORT}"]
        )
        own = [f"--num-cpus={self._cpus}", "--object-store-memory=80000000", f"--node-ip-address={address}"]
        ray = " ".join(["ray start --block --disable-usage-stats", *where, *own])
        script = (
            f"hostname {name}; mkdir -p {TEMPORARY}; mount -t tmpfs tmpfs {TEMPORARY}; ip link set lo up; "
            f"while ! ip link set {name}i name eth0 2>/dev/null; do sleep 0.1; done; "
            f"ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {GATEWAY}; {ray} & wait"
        )
        printed = self._folder / f"{name}.log"
        with printed.open("wb") as log:
            init = subprocess.Popen(
                ["unshare", "--uts", "--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script],
                env={**self._surroundings, "RAY_TMPDIR": TEMPORARY, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
            )
        while not (inside := psutil.Process(init.pid).children()):
            time.sleep(0.05)
        _ip(f"link set {name}i netns {inside[0].pid}")
        machine = Machine(name, address, init)
        self.machines.append(machine)
        end = time.monotonic() + SECONDS_TO_START
        while "Ray runtime started" not in printed.read_text():
            if init.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start: {printed.read_text()}")
            time.sleep(0.2)
        return machine

    @property
    def head(self) -> str:
        """The head's address."""
        return self.machines[0].address

    def kill(self, machine: Machine) -> None:
        """Kill a machine and forget it."""
        machine.kill()
        self.machines.remove(machine)


@contextmanager
def cluster(folder: Path, surroundings: Mapping[str, str], machines: int, cpus: int = 1) -> Iterator[Cluster]:
    """Run a cluster of so many machines inside the block."""
    _ip(f"link add {BRIDGE} type bridge", f"addr add {GATEWAY}/24 dev {BRIDGE}", f"link set {BRIDGE} up")
    started = Cluster(folder, surroundings, cpus)
    try:
        for _ in range(machines):
            started.add()
        yield started
    finally:
        for machine in [*started.machines]:
            started.kill(machine)
        _ip(f"link del {BRIDGE}")


def _ip(*commands: str) -> None:
    for command in commands:
        done: Any = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip {command}: {done.stderr}")
