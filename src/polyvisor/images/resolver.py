"""Which packages a set of packages needs: the dependencies of a Debian suite, solved.

Debian Policy, chapter 7 (relationships between packages), and deb-version(7). Recommended packages are not taken. The
same index and the same wishes always give the same packages.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from debian.debian_support import Version

from .errors import ImageError
from .repository import Package

_RELATION = re.compile(r"([a-z0-9][a-z0-9+.-]*)(?::([a-z0-9-]+))?\s*(?:\(\s*(<<|<=|=|>=|>>)\s*([^\s)]+)\s*\))?")
_STANZA = re.compile(r"^Package: (.+)\n(?:.+\n?)*", re.MULTILINE)
_FIELD = re.compile(r"^([A-Za-z0-9-]+):[ \t]*(.*(?:\n[ \t].*)*)", re.MULTILINE)
# A search that tries more than this has lost its way; a real suite needs a few hundred steps.
_MOST_STEPS = 200_000


@dataclass(frozen=True)
class Relation:
    """One alternative of a dependency, such as ``libc6 (>= 2.38)``; ``operator`` is empty when any version will do."""

    name: str
    operator: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.operator} {self.version})" if self.operator else self.name

    def accepts(self, version: str) -> bool:
        """Whether a package of that version satisfies it."""
        if not self.operator:
            return True
        order = _compare(version, self.version)
        return {
            "<<": order < 0, "<=": order <= 0, "=": order == 0, ">=": order >= 0, ">>": order > 0
        }[self.operator]


Dependency = tuple[Relation, ...]
"""Alternatives, of which one must be there; the first is preferred."""


@lru_cache(maxsize=1 << 16)
def _compare(left: str, right: str) -> int:
    a, b = Version(left), Version(right)
    return -1 if a < b else 1 if a > b else 0


def parse_relations(text: str) -> tuple[Dependency, ...]:
    """The dependencies in a field such as Depends. Raises ValueError for what is none."""
    found = []
    for group in text.split(","):
        if group.strip():
            alternatives = []
            for alternative in group.split("|"):
                match = _RELATION.fullmatch(alternative.strip())
                if match is None:
                    raise ValueError(f"{alternative.strip()!r} is not a relation to a package")
                alternatives.append(Relation(match[1], match[3] or "", match[4] or ""))
            found.append(tuple(alternatives))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A package that may be taken, with its relations to others."""

    package: Package
    essential: bool
    priority: str
    pre_depends: tuple[Dependency, ...]
    depends: tuple[Dependency, ...]
    conflicts: tuple[Relation, ...]
    """Conflicts and Breaks."""
    provides: tuple[Relation, ...]
    installed_size: int
    """KiB that it takes when it is unpacked, as it says itself."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.package.name

    def __str__(self) -> str:
        return f"{self.package.name} {self.package.version}"

    def satisfies(self, relation: Relation) -> bool:
        """Whether it is what ``relation`` asks for, itself or by what it provides (Policy 7.5)."""
        if relation.name == self.package.name and relation.accepts(self.package.version):
            return True
        return any(
            provided.name == relation.name
            and (not relation.operator or (provided.operator == "=" and relation.accepts(provided.version)))
            for provided in self.provides
        )


class Universe:
    """All packages of an index. A stanza is parsed when somebody asks for it: there are some seventy thousand."""

    def __init__(self, text: str) -> None:
        """``text`` of a Packages file."""
        self._text = text
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._providers: dict[str, list[str]] = {}
        self._parsed: dict[str, list[Candidate]] = {}
        for stanza in _STANZA.finditer(text):
            self._spans.setdefault(stanza[1].strip(), []).append(stanza.span())
        # A name once, in the order of the index, which is sorted.
        for match in re.finditer(r"^Package: (.+)\n(?:(?!Provides:).+\n)*Provides: (.+)", text, re.MULTILINE):
            for name in re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9+.-]*)", match[2]):
                providers = self._providers.setdefault(name, [])
                if match[1] not in providers:
                    providers.append(match[1])

    @classmethod
    def open(cls, compressed: Path) -> Universe:
        """From a ``Packages.xz``. Raises :class:`ImageError` ("corrupt")."""
        try:
            with lzma.open(compressed) as stream:
                return cls(stream.read().decode(errors="replace"))
        except (lzma.LZMAError, EOFError) as error:
            raise ImageError(f"the package index is not xz data ({error}); try another --mirror", "corrupt") from error

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def versions(self, name: str) -> list[Candidate]:
        """The packages of that name, newest first. Raises :class:`ImageError` ("corrupt")."""
        if name not in self._parsed:
            found = [_candidate(self._text[start:end]) for start, end in self._spans.get(name, ())]
            found.sort(key=lambda candidate: Version(candidate.package.version), reverse=True)
            self._parsed[name] = found
        return self._parsed[name]

    def satisfying(self, relation: Relation) -> list[Candidate]:
        """What satisfies ``relation``, best first: packages of that name, then those that provide it."""
        found = [each for each in self.versions(relation.name) if each.satisfies(relation)]
        ranks = {"required": 0, "important": 1, "standard": 2, "optional": 3}
        others = [
            each for name in self._providers.get(relation.name, ()) if name != relation.name
            for each in self.versions(name) if each.satisfies(relation)
        ]
        others.sort(key=lambda each: (ranks.get(each.priority, 4), each.name))
        return found + others

    def essential(self) -> list[str]:
        """The names of the packages that every system has (Policy 3.8)."""
        return sorted(self._named(r"Essential: yes"))

    def with_priority(self, priority: str) -> list[str]:
        """The names of the packages of a priority (Policy 2.5)."""
        return sorted(self._named(f"Priority: {re.escape(priority)}"))

    def _named(self, line: str) -> set[str]:
        names = set()
        for match in re.finditer(f"^{line}$", self._text, re.MULTILINE):
            start = self._text.rfind("\n\n", 0, match.start()) + 1
            stanza = _STANZA.search(self._text, start)
            if stanza is not None:
                names.add(stanza[1].strip())
        return names


def _candidate(stanza: str) -> Candidate:
    fields = {match[1]: match[2].strip() for match in _FIELD.finditer(stanza)}
    try:
        def relations(name: str) -> tuple[Dependency, ...]:
            return parse_relations(fields.get(name, ""))

        return Candidate(
            package=Package(
                name=fields["Package"], version=fields["Version"], architecture=fields["Architecture"],
                path=fields["Filename"], size=int(fields["Size"]), sha256=fields["SHA256"].lower(), depends=(),
            ),
            essential=fields.get("Essential") == "yes",
            priority=fields.get("Priority", "optional"),
            pre_depends=relations("Pre-Depends"),
            depends=relations("Depends"),
            conflicts=tuple(r for field in ("Conflicts", "Breaks") for group in relations(field) for r in group),
            provides=tuple(r for group in relations("Provides") for r in group),
            installed_size=int(fields.get("Installed-Size", "0")),
        )
    except (KeyError, ValueError) as error:
        raise ImageError(
            f"the index entry of {fields.get('Package')} lacks a good {error}; try another --mirror", "corrupt"
        ) from error


@dataclass
class _Choice:
    """A dependency that was satisfied by taking a package, and what else could have been taken."""

    wanted: Dependency
    by: str
    others: list[Candidate]
    taken: int
    """How many packages had been taken before."""
    queue: list[tuple[Dependency, str]]
    """What remained to be satisfied."""


@dataclass
class _Search:
    universe: Universe
    taken: dict[str, Candidate] = field(default_factory=dict)
    order: list[Candidate] = field(default_factory=list)
    names: dict[str, list[Candidate]] = field(default_factory=dict)
    """Which of those taken are called so, by name or by what they provide."""
    failure: str = ""
    """Why the first way that was tried led nowhere: the one that a person would try first."""

    def satisfied(self, wanted: Dependency) -> bool:
        return any(each.satisfies(relation) for relation in wanted for each in self.names.get(relation.name, ()))

    def obstacle(self, candidate: Candidate) -> str:
        """Why it cannot be taken beside what is taken; empty when it can."""
        other = self.taken.get(candidate.name)
        if other is not None:
            return f"{candidate} cannot be installed beside {other}"
        for relation in candidate.conflicts:
            for other in self.names.get(relation.name, ()):
                if other is not candidate and other.satisfies(relation):
                    return f"{candidate} conflicts with {other}"
        for name in {candidate.name, *(provided.name for provided in candidate.provides)}:
            for other in self._against(name):
                if any(candidate.satisfies(relation) for relation in other.conflicts if relation.name == name):
                    return f"{candidate} conflicts with {other}"
        return ""

    def _against(self, name: str) -> Iterable[Candidate]:
        return [each for each in self.order if any(relation.name == name for relation in each.conflicts)]

    def take(self, candidate: Candidate) -> None:
        self.taken[candidate.name] = candidate
        self.order.append(candidate)
        for name in {candidate.name, *(provided.name for provided in candidate.provides)}:
            self.names.setdefault(name, []).append(candidate)

    def give_back(self, count: int) -> None:
        """Only the first ``count`` that were taken stay."""
        while len(self.order) > count:
            candidate = self.order.pop()
            del self.taken[candidate.name]
            for name in {candidate.name, *(provided.name for provided in candidate.provides)}:
                self.names[name].remove(candidate)

    def possible(self, wanted: Dependency, by: str) -> list[Candidate]:
        """What satisfies ``wanted`` and can be taken, best first; says why when there is nothing."""
        all_of_them = [each for relation in wanted for each in self.universe.satisfying(relation)]
        found: list[Candidate] = []
        reasons: list[str] = []
        for each in all_of_them:
            if each in found:
                continue
            why = self.obstacle(each)
            if why:
                reasons.append(why)
            else:
                found.append(each)
        if not found and not self.failure:
            text = " | ".join(map(str, wanted))
            self.failure = f"{by} needs {text}, but " + (
                "; ".join(dict.fromkeys(reasons)) if reasons else "no package in the suite is or provides that"
            )
        return found


def resolve(universe: Universe, wanted: Sequence[str], excluded: Collection[str] = ()) -> list[Candidate]:
    """The packages ``wanted`` with all that they depend on, sorted by name.

    An entry of ``wanted`` is a name, or a relation such as ``python3 (>= 3.13)``. Where a dependency has alternatives,
    the first that does not conflict with what is there is taken, and others are tried when that leads nowhere;
    packages that are asked for by name count before what dependencies prefer. Nothing in ``excluded`` is taken. Raises
    :class:`ImageError`: "missing" for a name that is not in the suite, "conflict" with the reason.
    """
    search = _Search(universe)
    roots: list[Dependency] = []
    for text in dict.fromkeys(wanted):
        try:
            (dependency,) = parse_relations(text)
        except ValueError:
            raise ImageError(f"{text!r} is not the name of a package", "usage") from None
        if not any(universe.satisfying(relation) for relation in dependency):
            near = _similar(universe, dependency[0].name)
            raise ImageError(f"there is no package {text} in this suite{near}", "missing")
        roots.append(dependency)
    queue: list[tuple[Dependency, str]] = [(root, "the recipe") for root in roots]
    choices: list[_Choice] = []
    for _ in range(_MOST_STEPS):
        while queue and search.satisfied(queue[0][0]):
            queue = queue[1:]
        if not queue:
            return sorted(search.order, key=lambda each: each.name)
        wish, by = queue[0]
        found = [each for each in search.possible(wish, by) if each.name not in excluded]
        while not found:
            if not choices:
                raise ImageError(f"the packages cannot be installed together: {search.failure}", "conflict")
            # Back to the last choice that had another way.
            choice = choices.pop()
            search.give_back(choice.taken)
            wish, by, queue, found = choice.wanted, choice.by, choice.queue, choice.others
        chosen, others = found[0], found[1:]
        choices.append(_Choice(wish, by, others, len(search.order), queue))
        search.take(chosen)
        needs = [(each, str(chosen)) for each in (*chosen.pre_depends, *chosen.depends)]
        # First all that the recipe names, so that no dependency takes an alternative beside it.
        queue = [*queue[1:], *needs]
    raise ImageError(f"no set of packages was found: {search.failure or 'too many alternatives'}", "conflict")


def _similar(universe: Universe, name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(universe._spans), 3, 0.8)
    return f"; did you mean {', '.join(near)}?" if near else ""


def install_order(packages: Iterable[Candidate]) -> list[list[Candidate]]:
    """Batches to install one after the other, so that what a package pre-depends on is configured before that is
    unpacked (Policy 7.2). Within a batch dpkg finds the order itself. Each is sorted by name."""
    packages = sorted(packages, key=lambda each: each.name)
    providers: dict[str, list[Candidate]] = {}
    for each in packages:
        for name in {each.name, *(provided.name for provided in each.provides)}:
            providers.setdefault(name, []).append(each)

    def targets(dependencies: Iterable[Dependency]) -> list[Candidate]:
        return [
            each for group in dependencies for relation in group
            for each in providers.get(relation.name, ()) if each.satisfies(relation)
        ]

    before = {each.name: targets(each.pre_depends) for each in packages}
    beside = {each.name: targets(each.depends) for each in packages}
    component = _components([each.name for each in packages], {
        each.name: [other.name for other in (*before[each.name], *beside[each.name])] for each in packages
    })
    # Components come with what they depend on first, so one pass finds the longest ways.
    members: dict[int, list[Candidate]] = {}
    for each in packages:
        members.setdefault(component[each.name], []).append(each)
    level: dict[int, int] = {}
    for number in sorted(members):
        level[number] = max(
            (
                level[component[other.name]] + step
                for each in members[number]
                for step, others in ((1, before[each.name]), (0, beside[each.name]))
                for other in others
                if component[other.name] != number
            ),
            default=0,
        )
    batches: list[list[Candidate]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for each in packages:
        batches[level[component[each.name]]].append(each)
    return batches


def _components(names: Sequence[str], edges: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The strongly connected component of each name; a component that is reached from another has a lower number."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    component: dict[str, int] = {}
    count = 0
    for root in names:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            name, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    work.append((other, iter(edges[other])))
                    break
                if other not in component:
                    low[name] = min(low[name], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    while True:
                        member = stack.pop()
                        component[member] = count
                        if member == name:
                            break
                    count += 1
    return component
