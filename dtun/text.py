"""Makes text from other programs and peers safe for logs and terminals. Pure."""


def printable(text: str, limit: int | None = 120, *, keep: str = "") -> str:
    """The text with "?" for each character that is not printable, cut with "..." after `limit` characters.

    Characters in `keep`, such as a line break, stay.
    """
    shown = "".join(char if char.isprintable() or char in keep else "?" for char in text[:limit])
    return shown + ("..." if limit is not None and len(text) > limit else "")
