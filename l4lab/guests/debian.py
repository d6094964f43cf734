# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages of any architecture, without root and without touching the host's own package state.

apt does all the work (mirrors, proxies, signatures, hashes); we give it a private state directory and a list of
sources derived from the host's own. So what the host trusts is what we trust, and no server's name stands here.
What is inside the packages, and what we make of it, does not live here: see `guest.py`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from l4lab.errors import LabError

Report = Callable[[str], None]
"""Told one line per step of something slow; a terminal prints it, a notebook shows it."""

RELEASE = "bookworm"
"""Debian 12: the last release with kernels for 32-bit PCs, and with the 6.1 kernel that the lab is measured with."""

_DEBIAN_SUITE = re.compile(
    r"(?:oldoldstable|oldstable|stable|testing|unstable|sid|bullseye|bookworm|trixie|forky|duke)"
    r"(?P<part>|-updates|-security)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One archive the host is configured to use, as one stanza of sources.list(5) in its deb822 form."""

    uris: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()  # field name and value: Signed-By, Trusted, ...

    def stanza(self) -> str:
        """The same source, as apt reads it from a `.sources` file."""
        fields = [("Types", "deb"), ("URIs", self.uris), ("Suites", " ".join(self.suites))]
        fields += [("Components", " ".join(self.components)), *self.options]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def host_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Every enabled binary source of the host, in both formats that apt reads."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for file in files:
        if file.suffix == ".list" and file.is_file():
            found += one_line_sources(file.read_text())
        elif file.suffix == ".sources" and file.is_file():
            found += deb822_sources(file.read_text())
    return found


def one_line_sources(text: str) -> Iterator[Source]:
    """Lines such as `deb [signed-by=/k.gpg] URI SUITE COMPONENT...`: sources.list(5), "one-line-style format"."""
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<rest>[^#]+)(?:#.*)?", line)
        if match and len(words := match["rest"].split()) >= 3:
            pairs = re.findall(r"([\w-]+)=(\S+)", match["options"] or "")
            yield Source(words[0], (words[1],), tuple(words[2:]), _kept_options(pairs))


def deb822_sources(text: str) -> Iterator[Source]:
    """Stanzas of `Field: value`, a value going on in indented lines: sources.list(5), "deb822-style format"."""
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        found = re.findall(r"^([\w-]+)[ \t]*:[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        fields = {name.lower(): value for name, value in found}
        enabled = fields.get("enabled", "yes").strip().lower() not in {"no", "false", "0", "off", "without", "disable"}
        if enabled and "deb" in fields.get("types", "").split() and "components" in fields:
            suites, components = fields["suites"].split(), fields["components"].split()
            uris = " ".join(fields["uris"].split())
            yield Source(uris, tuple(suites), tuple(components), _kept_options(fields.items()))


def _kept_options(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    kept = {"signed-by", "trusted", "check-valid-until", "check-date"}  # all but those that narrow what is offered
    return tuple((name.title(), value) for name, value in pairs if name.lower() in kept)


def debian_only(sources: list[Source]) -> list[Source]:
    """Those of the sources that are Debian itself, moved to `RELEASE`: a host on Debian 13 has the same mirrors."""
    moved = []
    for source in sources:
        parts = [match["part"] for suite in source.suites if (match := _DEBIAN_SUITE.fullmatch(suite))]
        if parts and "main" in source.components:
            suites = tuple(dict.fromkeys(RELEASE + part for part in parts))
            moved.append(Source(source.uris, suites, ("main",), source.options))
    return moved


class Archive:
    """Debian's packages for one architecture, seen through an apt state of our own in `state`."""

    def __init__(self, state: Path, architecture: str, report: Report) -> None:
        self.state = state
        self.architecture = architecture
        self.report = report
        self.unread = ""  # what apt said of lists it could not read; explains a package that is not found

    def update(self) -> None:
        """Read the package lists; afterwards packages can be found and downloaded."""
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise LabError(f"there is no {tool} on this system to obtain Debian packages with")
        sources = debian_only(host_sources())
        if not sources:
            raise LabError("apt is not configured for a Debian archive here, so Debian's packages cannot be obtained")
        for part in ("lists/partial", "cache/archives/partial", "sources"):
            (self.state / part).mkdir(parents=True, exist_ok=True)
        (self.state / "status").touch()  # nothing is installed, as far as this apt knows
        (self.state / "sources" / "l4lab.sources").write_text("\n".join(source.stanza() for source in sources))
        self.report(f"reading the package lists of Debian {RELEASE} ({self.architecture})")
        try:
            self._run("apt-get", "update", "-q")
        except LabError as error:
            # One list of several is often missing while a mirror is being updated; the others may be all we need.
            self.unread = f" ({error})"
            self.report(f"some package lists could not be read, going on without{self.unread}")

    def newest(self, name_pattern: str) -> str:
        """The package whose whole name matches, the one with the highest numbers in its name if there are several."""
        listed = self._run("apt-cache", "search", "--names-only", f"^{name_pattern}$").split("\n")
        names = [line.split(" ", 1)[0] for line in listed if line]
        if not names:
            raise self._nothing(name_pattern)
        return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    def version(self, package: str) -> str:
        """The version that `download` would fetch."""
        shown = self._run("apt-cache", "show", "--no-all-versions", package)
        match = re.search(r"^Version: (\S+)$", shown, re.MULTILINE)
        if match is None:
            raise self._nothing(package)
        return match[1]

    def download(self, package: str, into: Path) -> Path:
        """Fetch one package, its signature chain and hash checked by apt, and unpack its files below `into`."""
        self.report(f"downloading {package} {self.version(package)}")
        root = into / package
        root.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            self._run("apt-get", "download", "-q", package, cwd=Path(scratch))
            (deb,) = Path(scratch).glob("*.deb")
            _run_tool(["dpkg-deb", "-x", str(deb), str(root)])
        return root

    def _nothing(self, package: str) -> LabError:
        offer = f"no package {package} for {self.architecture}"
        return LabError(f"the configured Debian archives offer {offer}{self.unread}; is the network there?")

    def _run(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        state = self.state.resolve()
        options = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "",  # apt run by root must not become _apt, who may not write here
            "APT::Update::Error-Mode": "any",  # an unreachable mirror is an error, not a warning
            "Acquire::Languages": "none",  # no translated descriptions
            "Debug::NoLocking": "1",
            "Dir::Cache": f"{state}/cache",
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": f"{state}/sources",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": str(state),
            "Dir::State::Lists": f"{state}/lists",
            "Dir::State::Status": f"{state}/status",
        }
        settings = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return _run_tool([tool, *settings, *arguments], cwd=cwd)


def _run_tool(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
        reason = (complaints or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise LabError(f"{command[0]} failed: {reason.removeprefix('E:').strip()}")
    return done.stdout
