"""Words of a command line that choose by name."""

from __future__ import annotations

from collections.abc import Iterable


def check(words: Iterable[str], names: Iterable[str], what: str) -> None:
    """See that every word is in a name, since one that is in none would choose nothing, or everything, silently.

    Raises:
        SystemExit: a word is in no name; the text has the names.
    """
    found = list(dict.fromkeys(names))
    for word in words:
        if not any(word in name for name in found):
            raise SystemExit(f"No {what} has {word!r} in its name; there are:\n  " + "\n  ".join(found))
