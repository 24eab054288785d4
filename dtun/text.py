"""Text that did not come from this program, for logs and terminals. Pure."""


def printable(text: str, limit: int | None = 120, *, keep: str = "") -> str:
    """Without control and formatting characters, which become "?"; at most `limit` characters, then "...".

    `keep` are characters that stay although they are not printable, such as a line break.
    """
    shown = "".join(char if char.isprintable() or char in keep else "?" for char in text[:limit])
    return shown + ("..." if limit is not None and len(text) > limit else "")
