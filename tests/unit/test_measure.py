"""The sampler tells what a real process burned, held and sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks.measure import Sampler
from benchmarks.peers import rounds_of

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
HELD_MB, BURNED_S = 200, 0.5
BURN = f"""
import time
held = bytearray({HELD_MB} * 10**6)
held[::4096] = b"x" * len(held[::4096])
begun = time.process_time()
while time.process_time() < begun + {BURNED_S}: pass
"""
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
print("over", flush=True)
sys.stdin.readline()
"""

SENT = 8 << 20
TALK = f"""
import json, socket, threading
from benchmarks import procfs
from benchmarks.link_bytes import LinkBytes
from benchmarks.measure import private_network

def send(address):
    with socket.create_server((address, port)) as server:
        def drain():
            with server.accept()[0] as taken:
                while taken.recv(1 << 20): pass
        drainer = threading.Thread(target=drain)
        drainer.start()
        with socket.create_connection((address, port)) as sender:
            sender.sendall(bytes({SENT}))
        drainer.join()

if note := private_network():
    print(json.dumps(note))
else:
    port = 4711
    with LinkBytes(address="127.0.0.2") as by_address, LinkBytes(port=4711) as by_port:
        send("127.0.0.2")
        port = 4712
        send("127.0.0.1")
    print(json.dumps({{"by_address": by_address.total(), "by_port": by_port.total(),
                      "lost": by_address.lost() + by_port.lost(), "loopback": procfs.loopback_bytes()}}))
"""


def burned_here() -> float:
    """CPU seconds of this process's children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def test_memory_and_cpu_of_a_child_are_told_by_role() -> None:
    before, begin = burned_here(), time.time()
    with Sampler(
        role=lambda command: "burner" if "held" in command else "other", pss_period_s=0.0
    ) as sampler:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    window = sampler.window(begin, time.time())
    assert HELD_MB < window.peak_rss_mb_by_role["burner"] < HELD_MB + 100
    assert HELD_MB < window.peak_uss_mb_by_role["burner"] <= window.peak_pss_mb_by_role["burner"] + 1
    assert sampler.high_water_mb()["burner"] >= window.peak_rss_mb_by_role["burner"] - 1
    assert window.cpu_s >= BURNED_S
    assert window.cpu_s == pytest.approx(burned_here() - before, abs=0.03)


def test_a_grandchild_that_ended_unseen_is_counted() -> None:
    """The sampler looks only before and after: what burned between is in its parent's account."""
    begin = time.time()
    with (
        Sampler(
            role=lambda command: "parent" if "import subprocess" in command else "other", period_s=3600
        ) as sampler,
        subprocess.Popen(
            [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent,
    ):
        assert parent.stdout is not None and parent.stdout.readline() == "over\n"
        now, held = sampler.window(begin, time.time()), sampler.moments[-1].rss_mb
        parent.communicate("\n")
    assert now.cpu_s >= BURNED_S
    assert 0 < held["parent"] < HELD_MB


def test_a_limit_is_told_and_nothing_is_ended() -> None:
    with Sampler(role=lambda _: "all", limit_mb=HELD_MB / 2) as sampler:
        assert subprocess.run([sys.executable, "-c", BURN], check=False).returncode == 0
    assert sampler.over_limit


def test_rounds_count_from_the_end_of_the_first() -> None:
    with Sampler(role=lambda _: "server") as sampler:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    first, last = sampler.moments[0].at, sampler.moments[-1].at
    third = (last - first) / 3
    spans = [(first, first + third), (first + third + 0.01, last)]
    found = rounds_of(sampler, spans, {"server"})
    assert found.counted == 1
    assert found.wall_s_min == found.wall_s_median == pytest.approx(2 * third, abs=0.01)
    assert found.server_peak_rss_mb > HELD_MB
    one = rounds_of(sampler, [(first, last)], {"server"})
    assert one.cpu_s_per_round >= BURNED_S > 0 and one.cpu_s_per_round >= found.cpu_s_per_round
    with pytest.raises(ValueError, match="no round"):
        rounds_of(sampler, [], {"server"})


def test_bytes_of_one_server_are_told_from_the_rest() -> None:
    """In its own process: it moves into a network of its own, which cannot be left again."""
    done = subprocess.run([sys.executable, "-c", TALK], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if isinstance(found, str):
        pytest.skip(found)
    assert found["lost"] == 0
    assert found["loopback"] > 2 * SENT
    for link in ("by_address", "by_port"):
        assert SENT < found[link] < 1.05 * SENT
