"""What a fault is, and how the tables of faults are written."""

from __future__ import annotations

from dataclasses import dataclass

_TESTS = "tests/{}test_{}.py::{}"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One wrong connection.

    Attributes:
        where: the control or split that it breaks.
        breaks: what is wrong then, in one sentence.
        file: below the package's folder.
        old, new: text that stands there exactly once, and what it becomes.
        tests: pytest node ids, of which at least one must fail, by an assertion.
    """

    name: str
    study: str
    where: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """``text`` with the fault in it.

        Raises:
            ValueError: the text to be replaced does not stand there exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.name}: its text stands {found} times in {self.file}, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def faults(study: str, module: str, *entries: tuple[str, str, str, str, str, str, tuple[str, ...]]) -> list[Fault]:
    """Faults of one study from rows of name, where, breaks, file, old, new, and tests of ``tests/wiring/test_<module>.py``,
    or of ``tests/test_<module>.py`` where the module is written ``../<module>``."""
    return [
        Fault(
            name=f"{study}-{name}",
            study=study,
            where=where,
            breaks=breaks,
            file=file,
            old=old,
            new=new,
            tests=tuple(
                _TESTS.format("" if module.startswith("../") else "wiring/", module.removeprefix("../"), test) for test in tests
            ),
        )
        for name, where, breaks, file, old, new, tests in entries
    ]
