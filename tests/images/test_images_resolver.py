"""Which packages a recipe comes to: small suites made up here."""

from __future__ import annotations

import itertools
import random

import pytest

from polyvisor.images import ImageError
from polyvisor.images.resolver import Relation, Universe, install_order, parse_relations, resolve


def universe(*stanzas: str) -> Universe:
    """``name version`` and then lines of fields, for each package."""
    texts = []
    for stanza in stanzas:
        first, _, rest = stanza.partition("\n")
        name, _, version = first.partition(" ")
        texts.append(
            f"Package: {name}\nVersion: {version or '1'}\nArchitecture: riscv64\nFilename: pool/{name}.deb\nSize: 1\n"
            f"SHA256: {'0' * 64}\n{rest.strip()}\n".replace("\n\n", "\n")
        )
    return Universe("\n".join(texts))


def chosen(suite: Universe, *wanted: str, excluded: tuple[str, ...] = ()) -> list[str]:
    return [str(each) for each in resolve(suite, wanted, excluded)]


@pytest.mark.parametrize(
    ("operator", "version", "accepted"),
    [
        ("<<", "1.0", ["0.9", "1.0~rc1"]),
        ("<=", "1.0", ["0.9", "1.0~rc1", "1.0"]),
        ("=", "1.0", ["1.0"]),
        (">=", "1.0", ["1.0", "1.0-1", "1.10", "1:0.1"]),
        (">>", "1.0", ["1.0-1", "1.10", "1:0.1"]),
        ("", "", ["0.9", "1.0~rc1", "1.0", "1.0-1", "1.10", "1:0.1"]),
    ],
)
def test_versions_compare_as_debian_says(operator: str, version: str, accepted: list[str]) -> None:
    relation = Relation("p", operator, version)
    assert [v for v in ("0.9", "1.0~rc1", "1.0", "1.0-1", "1.10", "1:0.1") if relation.accepts(v)] == accepted


def test_relations_are_parsed() -> None:
    assert parse_relations("libc6 (>= 2.38), awk | mawk, python3:any (<< 3.15)\n  , perl") == (
        (Relation("libc6", ">=", "2.38"),),
        (Relation("awk"), Relation("mawk")),
        (Relation("python3", "<<", "3.15"),),
        (Relation("perl"),),
    )
    for bad in ("a b", "(>= 1)", "a (>> )", "A"):
        with pytest.raises(ValueError, match="not a relation"):
            parse_relations(bad)


def test_dependencies_come_along_and_nothing_else_does() -> None:
    suite = universe("a\nDepends: b, c (>= 2)\nRecommends: d", "b\nPre-Depends: e", "c 2", "c 1", "d", "e", "f")
    assert chosen(suite, "a") == ["a 1", "b 1", "c 2", "e 1"]


def test_the_newest_version_is_taken_unless_an_older_one_is_needed() -> None:
    suite = universe("a 1", "a 2", "b\nDepends: a (<< 2)", "c\nDepends: a")
    assert chosen(suite, "c") == ["a 2", "c 1"]
    assert chosen(suite, "b", "c") == ["a 1", "b 1", "c 1"]
    # Here the newest was taken first, and that had to be undone.
    assert chosen(suite, "c", "b") == ["a 1", "b 1", "c 1"]


def test_of_alternatives_the_first_is_taken_unless_another_is_there() -> None:
    suite = universe("a\nDepends: b | c", "b", "c", "d\nDepends: nothing | c")
    assert chosen(suite, "a") == ["a 1", "b 1"]
    assert chosen(suite, "a", "c") == ["a 1", "c 1"]
    assert chosen(suite, "d") == ["c 1", "d 1"]


def test_what_is_provided_satisfies() -> None:
    suite = universe(
        "a\nDepends: mail", "x\nProvides: mail\nPriority: optional", "y\nProvides: mail\nPriority: important",
        "b\nDepends: mail (>= 2)", "z\nProvides: mail (= 2)", "c\nDepends: mail (>= 3)",
    )
    assert chosen(suite, "a") == ["a 1", "y 1"], "the more important one"
    assert chosen(suite, "b") == ["b 1", "z 1"], "only a provided version satisfies one that is asked for"
    with pytest.raises(ImageError, match=r"c 1 needs mail \(>= 3\), but no package in the suite is or provides that"):
        chosen(suite, "c")


@pytest.mark.parametrize("field", ["Conflicts", "Breaks"])
def test_conflicts_are_avoided_or_reported(field: str) -> None:
    suite = universe(
        "a\nDepends: b | c", f"b\n{field}: d", "c", "d", f"e 1\n{field}: d (<< 2)", "f\nDepends: d, e",
        "d2 5\nProvides: d",
    )
    assert chosen(suite, "a", "d") == ["a 1", "c 1", "d 1"]
    assert chosen(suite, "d", "a") == ["a 1", "c 1", "d 1"]
    with pytest.raises(ImageError, match=r"cannot be installed together: .*b 1 conflicts with d 1") as caught:
        chosen(suite, "d", "b")
    assert caught.value.kind == "conflict"
    # What is provided without a version does not conflict with one that names versions.
    assert chosen(suite, "f", "d2") == ["d2 5", "e 1", "f 1"]


def test_a_package_may_conflict_with_what_it_provides_itself() -> None:
    suite = universe("a\nProvides: mail\nConflicts: mail", "b\nProvides: mail\nConflicts: mail")
    assert chosen(suite, "a") == ["a 1"]
    with pytest.raises(ImageError, match="conflicts with"):
        chosen(suite, "a", "b")


def test_a_choice_is_undone_when_it_leads_nowhere() -> None:
    suite = universe("a\nDepends: b | c", "b\nDepends: d", "d\nDepends: not-there", "c")
    assert chosen(suite, "a") == ["a 1", "c 1"]


def test_excluded_packages_are_not_taken() -> None:
    suite = universe("a\nDepends: b | c", "b", "c")
    assert chosen(suite, "a", excluded=("b",)) == ["a 1", "c 1"]
    with pytest.raises(ImageError, match="cannot be installed together"):
        chosen(suite, "a", excluded=("b", "c"))


def test_a_name_that_is_not_there_is_reported_with_similar_ones() -> None:
    with pytest.raises(ImageError, match="no package pyhton3 in this suite; did you mean python3") as caught:
        chosen(universe("python3", "perl"), "pyhton3")
    assert caught.value.kind == "missing"


def test_cycles_end() -> None:
    assert chosen(universe("a\nDepends: b", "b\nDepends: c", "c\nPre-Depends: a"), "a") == ["a 1", "b 1", "c 1"]


def test_the_order_of_the_index_does_not_matter_but_the_result_is_right() -> None:
    """Random suites: whatever is found satisfies everything, and all that could be found by trying everything is."""
    rng = random.Random(4)
    found = failed = 0
    for _ in range(300):
        names = "abcdefg"
        stanzas = []
        for name in names:
            groups = [" | ".join(rng.sample(names, rng.randint(1, 2))) for _ in range(rng.randint(0, 2))]
            lines = [f"Depends: {', '.join(groups)}"] if groups else []
            if rng.random() < 0.5:
                lines.append(f"Conflicts: {rng.choice([n for n in names if n != name])}")
            stanzas.append("\n".join([name, *lines]))
        suite = universe(*stanzas)
        wanted = rng.sample(names, 2)
        sets = [set(part) for size in range(len(names) + 1) for part in itertools.combinations(names, size)]
        good = [each for each in sets if set(wanted) <= each and _consistent(suite, each)]
        try:
            result = {each.name for each in resolve(suite, wanted)}
            assert result in good
            found += 1
        except ImageError:
            assert not good
            failed += 1
    assert found > 50 and failed > 50


def _consistent(suite: Universe, names: set[str]) -> bool:
    for name in names:
        (package,) = suite.versions(name)
        if not all(any(relation.name in names for relation in group) for group in package.depends):
            return False
        if any(relation.name in names for relation in package.conflicts):
            return False
    return True


def test_what_is_pre_depended_on_is_installed_in_an_earlier_batch() -> None:
    suite = universe("a\nPre-Depends: b", "b\nDepends: c", "c", "d\nDepends: a", "e")
    order = [[each.name for each in batch] for batch in install_order(resolve(suite, ["a", "d", "e"]))]
    assert order == [["b", "c", "e"], ["a", "d"]]


def test_a_cycle_of_dependencies_is_one_batch() -> None:
    suite = universe("a\nDepends: b", "b\nDepends: a", "c\nPre-Depends: a", "d\nPre-Depends: e", "e\nDepends: d")
    order = [[each.name for each in batch] for batch in install_order(resolve(suite, ["c", "d"]))]
    assert order == [["a", "b", "d", "e"], ["c"]]
    assert install_order([]) == []


def test_essential_packages_and_priorities_are_found() -> None:
    suite = universe("a\nEssential: yes\nPriority: required", "b\nPriority: required", "c\nDescription: Essential: yes")
    assert suite.essential() == ["a"]
    assert suite.with_priority("required") == ["a", "b"]


def test_a_damaged_entry_is_reported() -> None:
    with pytest.raises(ImageError, match="entry of a lacks") as caught:
        chosen(universe("a\nDepends: (b"), "a")
    assert caught.value.kind == "corrupt"
