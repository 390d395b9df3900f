"""Why a file is not opened: the one exception of the readers, and the words that they share."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN_CHARACTERS = 80
SAVE_AGAIN = "save it again with torch.save(model.state_dict(), PATH)"
COPY_AGAIN = "copy or download it again"
SAVE_FROM_TRUST = (
    "if you trust its source, load it in Python where it was made, and save the weights alone with "
    "torch.save(model.state_dict(), PATH)"
)


class Refusal(Exception):  # noqa: N818 -- it says no; nothing went wrong
    """A file cannot be opened.

    Args:
        reason: goes on after the file's name, "holds no tensors" say.
        advice: what to do next, "give another file" say.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason, advice)
        self.reason = reason
        self.advice = advice

    def sentence(self, file_name: str) -> str:
        """The one sentence that a user reads."""
        return f"{printable(file_name)} {self.reason}, so it was not opened; {self.advice}."


class CodeRefusal(Refusal):
    """A file names code that it wants to be run."""

    def __init__(self, name: str) -> None:
        super().__init__(f"contains code ({shown(name)})", SAVE_FROM_TRUST)


class Damage(Refusal):
    """A file is not what it begins as: cut, overwritten, or forged."""

    def __init__(self, what: str) -> None:
        super().__init__(f"is damaged ({what})", f"{COPY_AGAIN}, or {SAVE_AGAIN}")


def shown(name: object) -> str:
    """A name from outside as quoted text of bounded length, without control characters."""
    text = name if isinstance(name, str) else str(type(name).__name__)
    cut = text[:SHOWN_CHARACTERS]
    return ascii(cut) if any("\ud800" <= each <= "\udfff" for each in cut) else repr(cut)


def shown_list(names: Iterable[str], limit: int = 5) -> str:
    """The first few names from outside, quoted, and how many more there are."""
    each = list(names)
    more = f" and {len(each) - limit} more" if len(each) > limit else ""
    return ", ".join(shown(name) for name in each[:limit]) + more


def printable(file_name: str) -> str:
    """A file's name on one line, of bounded length."""
    text = "".join(each if each.isprintable() else "?" for each in file_name)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
