# SPDX-License-Identifier: Apache-2.0
"""Heartbeats and leases between real shepherds on loopback addresses."""
import hashlib
import os
import select
import signal
import socket
import struct
import time

import pytest

from herd import Herd, alive, free_port, wait_until

KEY, OTHER_KEY = os.urandom(32), os.urandom(32)
LAN, FAST = 0, 1


def now_us():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def peer(number, *addresses, port=0, key=KEY, epoch=1, **fields):
    return {"number": number, "key": key.hex(), "key_epoch": epoch,
            "paths": [{"address": a, "port": port} for a in addresses], **fields}


def table(h, number, peers, profile=FAST, **fields):
    done = h.ask("heartbeats", {"number": number, "profile": profile, "peers": peers, **fields})
    assert done["code"] == 0, done["error"]


def report_until(h, check, seconds=5.0):
    return h.wait("heartbeats", lambda e: check({p["number"]: p for p in e["peers"]}, e), seconds)


class Two:
    def __init__(self, profile=FAST, **fields):
        self.port = free_port()
        self.a = Herd(bind="127.0.0.1", port=self.port)
        self.b = Herd(bind="127.0.0.2", port=self.port)
        self.profile, self.fields = profile, fields

    def __enter__(self):
        self.a.hello, self.b.hello = self.a.meet(), self.b.meet()
        table(self.a, 1, [peer(2, "127.0.0.2", grant=True)], self.profile, **self.fields)
        table(self.b, 2, [peer(1, "127.0.0.1", grant=True)], self.profile, **self.fields)
        return self

    def __exit__(self, *_):
        self.a.close()
        self.b.close()

    def both_up(self):
        report_until(self.a, lambda p, e: p[2]["heard"] and not p[2]["suspect"] and p[2]["rtt_us"])
        report_until(self.b, lambda p, e: p[1]["heard"] and not p[1]["suspect"] and p[1]["rtt_us"])


class Stranger:
    """A peer that the test plays by itself."""
    FIELDS = struct.Struct("<4sB3xIIIIQQQQQQQQ8x")

    def __init__(self, address, port, number, key=KEY):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.number, self.key, self.sequence, self.incarnation = number, key, 0, 1000

    def packet(self, receiver, incarnation=None, their=0, epoch=1, sequence=None, key=None, sent=None):
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        head = self.FIELDS.pack(b"CPHB", 1, self.number, receiver, epoch, 0,
                                incarnation or self.incarnation, their, sequence,
                                sent or now_us(), 0, 0, 0, 0)
        return head + hashlib.blake2b(head, key=key or self.key, digest_size=16).digest()

    def hear(self, seconds=5.0):
        assert select.select([self.socket], [], [], seconds)[0], "nothing heard"
        data = self.socket.recv(2048)
        fields = self.FIELDS.unpack(data[:96])
        assert hashlib.blake2b(data[:96], key=self.key, digest_size=16).digest() == data[96:]
        return {"incarnation": fields[6], "theirs": fields[7], "sequence": fields[8]}


def test_two_nodes_hear_each_other_and_notice_silence():
    with Two(FAST) as t:
        t.both_up()
        begin = time.monotonic()
        os.kill(t.b.pid, signal.SIGSTOP)
        s = t.a.wait("suspect", seconds=5)
        took = time.monotonic() - begin
        assert s["number"] == 2
        assert 0.04 < took < 0.5, took
        os.kill(t.b.pid, signal.SIGCONT)
        # The one that slept knows that it slept, and accuses nobody.
        late = t.b.wait("late", seconds=5)
        assert late["late_us"] > 30_000
        report_until(t.a, lambda p, e: not p[2]["suspect"])
        assert not [e for k, e, _ in t.b.events if k == "suspect"]


def test_forged_replayed_and_senseless_packets_are_counted_and_do_nothing():
    port = free_port()
    with Herd(bind="127.0.0.1", port=port) as h:
        x = Stranger("127.0.0.3", port, 3)
        table(h, 1, [peer(3, "127.0.0.3")], LAN)
        to = ("127.0.0.1", port)
        mine = h.hello["incarnation"]
        x.socket.sendto(x.packet(1, their=mine), to)
        report_until(h, lambda p, e: p[3]["heard"])

        def count(packets, field, seconds=5):
            base = report_until(h, lambda p, e: True)[field]
            for p in packets:
                x.socket.sendto(p, to)
            e = report_until(h, lambda p, e: e[field] >= base + len(packets), seconds)
            assert e[field] == base + len(packets)
            return e

        count([x.packet(1, their=mine, key=OTHER_KEY)] * 3, "bad_mac")
        count([x.packet(1, their=mine, epoch=9)], "bad_mac")
        flipped = bytearray(x.packet(1, their=mine))
        flipped[50] ^= 1
        count([bytes(flipped)], "bad_mac")
        good = x.packet(1, their=mine)
        x.socket.sendto(good, to)
        count([good] * 5, "replayed")
        count([x.packet(1, their=mine, incarnation=999)], "replayed")
        count([b"", b"x", os.urandom(112), os.urandom(1400)], "malformed")
        count([x.packet(7, their=mine)], "bad_sender")
        y = Stranger("127.0.0.4", port, 4)
        count([y.packet(1, their=mine)], "bad_sender")
        # Authentic, but recorded in an earlier life of the receiver: it does not keep 3 alive.
        wait_until(lambda: h.wait("suspect", seconds=5), what="suspect")
        e = count([x.packet(1, their=mine - 1) for _ in range(5)], "stale")
        assert e["peers"][0]["suspect"]


def test_heartbeat_keys_change_without_a_gap():
    with Two(FAST) as t:
        t.both_up()
        for epoch, key, old in ((2, OTHER_KEY, KEY), (3, os.urandom(32), OTHER_KEY)):
            for h, number, p, address in ((t.a, 1, 2, "127.0.0.2"), (t.b, 2, 1, "127.0.0.1")):
                # Learned as the previous key first, used afterwards.
                table(h, number, [peer(p, address, key=old, epoch=epoch - 1,
                                       previous_key=key.hex(), previous_epoch=epoch)])
            for h, number, p, address in ((t.a, 1, 2, "127.0.0.2"), (t.b, 2, 1, "127.0.0.1")):
                table(h, number, [peer(p, address, key=key, epoch=epoch,
                                       previous_key=old.hex(), previous_epoch=epoch - 1)])
            begin = now_us()
            e = report_until(t.a, lambda p, e: p[2]["heard_us"] > begin + 50_000)
            assert e["bad_mac"] == 0
        assert not [e for k, e, _ in t.a.events + t.b.events if k == "suspect"]


def test_restart_of_a_peer_is_heard_at_once_and_its_past_is_not():
    port = free_port()
    a = Herd(bind="127.0.0.1", port=port)
    b = Herd(bind="127.0.0.2", port=port)
    with a, b:
        table(a, 1, [peer(2, "127.0.0.2")])
        table(b, 2, [peer(1, "127.0.0.1")])
        first = report_until(a, lambda p, e: p[2]["heard"])["peers"][0]["incarnation"]
        b.process.kill()
        b.process.wait()
        b.wait("leftovers")
        b.listener.close()
        a.wait("suspect")
        with Herd(bind="127.0.0.2", port=port, keep=b.folder) as again:
            table(again, 2, [peer(1, "127.0.0.1")])
            e = report_until(a, lambda p, e: p[2]["incarnation"] > first and not p[2]["suspect"])
            assert e["peers"][0]["heard"]


def test_each_path_has_its_own_state():
    port = free_port()
    with Herd(port=port) as h:
        x = Stranger("127.0.0.3", port + 1, 3)
        y = Stranger("127.0.0.4", port + 1, 3)
        z = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        z.bind(("::1", port + 1))
        table(h, 1, [peer(3, "127.0.0.3", "127.0.0.4", "::1", port=port + 1)], LAN)
        assert x.hear()["sequence"] and y.hear()["sequence"] and len(z.recv(200)) == 112
        mine = x.hear()["incarnation"]
        up = lambda p: [q["up"] for q in p[3]["paths"]]
        for s, want in ((x, [True, False, False]), (y, None)):
            x.sequence += 1
            s.sequence = x.sequence
            s.socket.sendto(s.packet(1, their=mine), ("127.0.0.1", port))
            x.sequence = s.sequence
            if want:
                report_until(h, lambda p, e: up(p) == want)
        report_until(h, lambda p, e: up(p)[1])
        z.sendto(x.packet(1, their=mine), ("::1", port))
        report_until(h, lambda p, e: up(p)[2])
        z.close()


# ------------------------------------------------------------ leases

LEASE = {"lease_ms": 600, "term_before_ms": 300, "kill_before_ms": 100}


def lead(h, term=1, ms=400):
    h.request("leader", {"term": term, "quorum_until_us": now_us() + ms * 1000})


def test_lease_ends_by_itself_whatever_the_brain_does():
    """The holder's brain is stopped and the granter cut off: TERM, then KILL, in time."""
    with Two(FAST, **LEASE) as t:
        t.both_up()
        s = t.b.spawn(["sleep", "100"], lease=True)
        assert s["code"] < 0 and "no lease" in s["error"]
        end = time.monotonic() + 5
        while time.monotonic() < end:
            lead(t.a)
            if t.b.pump(0.05) and any(k == "lease" for k, _, _ in t.b.events):
                break
        assert t.b.wait("lease")["phase"] == "lease-held"
        polite = t.b.spawn(["sleep", "100"], lease=True)
        stubborn = t.b.spawn(["sh", "-c", "trap '' TERM; echo set; while :; do sleep 0.02; done"],
                             lease=True)
        t.b.wait_for(lambda: t.b.out(stubborn["task"]) == b"set\n", what="trap")
        free = t.b.spawn(["sleep", "100"])
        lead(t.a)
        time.sleep(0.1)  # a renewal on its way; the order of what follows is what counts
        os.kill(t.b.brain_pid, signal.SIGSTOP)
        os.kill(t.a.pid, signal.SIGSTOP)
        cut = now_us()
        wait_until(lambda: not alive(polite["pid"]), 3, "TERM")
        term_at = now_us()
        assert alive(stubborn["pid"])
        wait_until(lambda: not alive(stubborn["pid"]), 3, "KILL")
        kill_at = now_us()
        assert alive(free["pid"])
        assert term_at - cut < 400_000 and kill_at - cut < 600_000, (term_at - cut, kill_at - cut)
        os.kill(t.a.pid, signal.SIGCONT)
        os.kill(t.b.brain_pid, signal.SIGCONT)
        # What the granter reckons is later than what happened.
        stopped = t.a.wait("grant_stopped", call=t.a.request("grant_stop", {"number": 2}))
        assert stopped["ended_us"] > kill_at
        x = t.b.wait("exit", lambda e: e["task"] == stubborn["task"])
        assert x["signal"] == 9 and x["why"] == "lease ended"


def test_lease_is_kept_while_granted_and_ends_when_it_is_not():
    with Two(FAST, **LEASE) as t:
        t.both_up()
        lead(t.a, ms=2500)
        assert t.b.wait("lease")["phase"] == "lease-held"
        assert t.a.wait("lease")["phase"] == "lease-held", "a leader holds its own"
        s = t.b.spawn(["sleep", "100"], lease=True)
        time.sleep(1.5)
        assert alive(s["pid"]), "renewed several times by now"
        stopped = t.a.wait("grant_stopped", call=t.a.request("grant_stop", {"number": 2}))
        t.b.wait("exit", lambda e: e["task"] == s["task"])
        assert now_us() < stopped["ended_us"]
        assert t.b.wait("lease", lambda e: e["phase"] == "lease-none")["term"] == 1
        # An older leader's word counts for nothing.
        assert t.a.wait("done", call=t.a.request("leader", {"term": 0}))["code"] == 0


def test_lease_survives_the_brain_and_an_upgrade():
    with Two(FAST, **LEASE) as t:
        t.both_up()
        lead(t.a, ms=4000)
        t.b.wait("lease", lambda e: e["phase"] == "lease-held")
        s = t.b.spawn(["sleep", "100"], lease=True)
        hello = t.b.kill_brain()
        assert hello["lease"]["phase"] == "lease-held"
        t.b.request("upgrade", {})
        with pytest.raises(EOFError):
            t.b.wait("nothing")
        hello = t.b.meet()
        assert hello["upgraded"] and hello["lease"]["phase"] == "lease-held"
        time.sleep(0.8)
        assert alive(s["pid"]), "heartbeats went on with the old sequence numbers"
        assert not t.b.events or all(k != "suspect" for k, _, _ in t.b.events)
