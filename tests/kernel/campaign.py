# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzzers with seeds that nobody has tried yet, on all processors, for as long as one says: `make campaign`.

    python -m tests.kernel.campaign --minutes 10 [--seed FIRST] [--jobs N] [--kinds kernel vm] [--every ENTRIES]

A *kind* is a fuzzer: `kernel` attacks the system calls (fuzz.py), `vm` virtual machines (vmfuzz.py; odd seeds under
shadow paging, even ones under nested). Each round is made from a seed and says nothing unless something breaks. A seed
that breaks something goes into seeds.txt, beside this file, with how much was played until then; `test_seeds.py` plays
what stands there again, for ever.

Rounds are played by processes of their own, since what breaks may be the process.
"""

from __future__ import annotations

import argparse
import os
import random
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from l4lab.errors import LabError

SEEDS = Path(__file__).with_name("seeds.txt")
ROUNDS_PER_PROCESS = 20
SILENCE = 900  # seconds after which a round has hung: the longest takes some ten, where nothing else runs
REPORT_EVERY = 10  # seconds


@dataclass(frozen=True)
class Played:
    """What a round did."""

    calls: int = 0  # of attackers: system calls, loads and stores, port accesses
    exits: int = 0  # of guests, told to their monitor
    entries: int = 0  # into the kernel, for whatever reason


def play_kernel(seed: int, amount: int, every: int) -> Played:
    """A round of fuzz.py of so many calls; the invariants are checked after every so many kernel entries."""
    from tests.kernel.fuzz import Round

    attack = Round(seed, privileged=bool(seed & 1))
    try:
        calls = attack.run(amount, every)
        if not attack.privileged and (attack.broken or not attack.served):
            raise AssertionError(f"the innocents were disturbed: {attack.served=} {attack.broken=}")
        return Played(calls=calls, entries=attack.system.kernel.entries)
    finally:
        progress["kernel"] = attack.calls
        attack.stop()


def play_vm(seed: int, amount: int, every: int) -> Played:
    """A round of vmfuzz.py of so many exits."""
    from tests.kernel.vmfuzz import Round

    one = Round(seed)
    try:
        exits = one.run(amount, every)
        return Played(exits=exits, entries=one.system.kernel.entries)
    finally:
        progress["vm"] = one.exits
        one.stop()


KINDS: dict[str, Callable[[int, int, int], Played]] = {"kernel": play_kernel, "vm": play_vm}
AMOUNT = 2000  # calls or exits in a round
progress = Counter[str]()  # how far the last round of each kind came


def known() -> Iterator[tuple[str, int, int, int]]:
    """The seeds that broke something once: kind, seed, how much to play, how often to check."""
    for line in SEEDS.read_text().splitlines():
        words = line.partition("#")[0].split()
        if words:
            yield words[0], int(words[1]), int(words[2]), int(words[3])


# -- the player: a process that plays rounds and prints a line before and after each -----------------------------------


def play(kind: str, seed: int, every: int, rounds: int) -> None:
    """Play rounds from a seed on. What breaks ends the process, and has told how far the round was."""
    for number in range(seed, seed + rounds):
        print("playing", number, flush=True)
        try:
            played = KINDS[kind](number, AMOUNT, every)
        except BaseException:
            print("broke", number, progress[kind], flush=True)
            raise
        print("played", number, played.calls, played.exits, played.entries, flush=True)


# -- the campaign ------------------------------------------------------------------------------------------------------


@dataclass
class Player:
    """A process that plays."""

    kind: str
    process: subprocess.Popen[str]
    seed: int
    amount: int
    heard: float = field(default_factory=time.monotonic)
    plays: bool = False  # has it begun its first round?
    said: str = ""  # the last line that it printed

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout


class Campaign:
    """Keeps so many players busy, and adds up what they did."""

    def __init__(self, kinds: Sequence[str], seed: int, every: int, jobs: int) -> None:
        self.kinds = kinds
        self.seed = seed
        self.every = every
        self.jobs = jobs
        self.rounds = self.calls = self.exits = self.entries = 0
        self.failures: list[str] = []
        self.players: list[Player] = []
        self.selector = selectors.DefaultSelector()
        self.started = time.monotonic()

    def run(self, minutes: float) -> None:
        """Play for so long, then let nobody finish his round."""
        end = self.started + 60 * minutes
        said = self.started
        try:
            while (now := time.monotonic()) < end:
                while len(self.players) < self.jobs:
                    self._start()
                for key, _ in self.selector.select(timeout=min(1.0, end - now)):
                    self.hear(key.data)
                for player in [p for p in self.players if now - p.heard > SILENCE]:
                    player.process.kill()
                    self._end(player, f"hung for {SILENCE} seconds")
                if now - said >= REPORT_EVERY:
                    said = now
                    print(self, flush=True)
        finally:
            for player in self.players:
                player.process.kill()
                player.process.wait()

    def _start(self) -> None:
        kind = self.kinds[self.seed // ROUNDS_PER_PROCESS % len(self.kinds)]
        command = [sys.executable, "-m", "tests.kernel.campaign", "--play", kind, str(self.seed), str(self.every)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        player = Player(kind, process, self.seed, AMOUNT)
        self.seed += ROUNDS_PER_PROCESS
        self.players.append(player)
        self.selector.register(player.output, selectors.EVENT_READ, player)

    def hear(self, player: Player) -> None:
        """The player has printed a line, or ended."""
        line = player.output.readline()
        player.heard = time.monotonic()
        match line.split():
            case ["playing", seed]:
                player.seed, player.plays = int(seed), True
            case ["played", _, calls, exits, entries]:
                self.rounds += 1
                self.calls += int(calls)
                self.exits += int(exits)
                self.entries += int(entries)
            case ["broke", _, amount]:
                player.amount = int(amount) + 1
                self._end(player, player.output.read().strip().splitlines()[-1])
            case _ if not line:
                self._end(player, f"the process ended with status {player.process.wait()}")
            case _:
                player.said = line.strip()

    def _end(self, player: Player, why: str) -> None:
        """The player has played all its rounds, or broken something."""
        self.selector.unregister(player.output)
        self.players.remove(player)
        player.output.close()
        if player.process.wait() and not player.plays:
            raise LabError(f"No round can be played: {player.said or why}. Does `make check` pass?")
        if player.process.wait():
            self.failures.append(f"{player.kind} {player.seed} {player.amount} {self.every}  # {why}")
            print("BROKE", self.failures[-1], flush=True)
            with SEEDS.open("a") as file:
                print(self.failures[-1], file=file)

    def __str__(self) -> str:
        minutes = (time.monotonic() - self.started) / 60
        return (
            f"{minutes:5.1f} min: {self.rounds} rounds, {self.calls:,} calls, {self.exits:,} guest exits, "
            f"{self.entries:,} kernel entries, {len(self.failures)} failures"
        )


def main() -> int:
    """The command. 1 if a seed broke something."""
    parser = argparse.ArgumentParser(description="The fuzzers with fresh seeds.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="the first one; a fresh one unless given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--every", type=int, default=50, help="check the invariants after so many kernel entries")
    parser.add_argument("--play", nargs=3, metavar=("KIND", "SEED", "EVERY"), help="be a player")
    arguments = parser.parse_args()
    if arguments.play:
        play(arguments.play[0], int(arguments.play[1]), int(arguments.play[2]), ROUNDS_PER_PROCESS)
        return 0
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 30)
    campaign = Campaign(arguments.kinds, seed, arguments.every, arguments.jobs)
    print(f"{', '.join(arguments.kinds)}: seeds from {seed} on, {arguments.jobs} at a time", flush=True)
    try:
        campaign.run(arguments.minutes)
    except KeyboardInterrupt:
        pass
    except LabError as error:
        print(error)
        return 2
    print(campaign)
    print(f"seeds {seed} to {campaign.seed - 1}; {len(campaign.failures)} new in {SEEDS.name}")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
