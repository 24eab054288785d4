"""Text for logs and terminals: what other programs and peers said made safe, and lengths of time. Pure."""


def printable(text: str, limit: int | None = 120, *, keep: str = "") -> str:
    """The text with "?" for each character that is not printable, cut with "..." after `limit` characters.

    Characters in `keep`, such as a line break, stay.
    """
    shown = "".join(char if char.isprintable() or char in keep else "?" for char in text[:limit])
    return shown + ("..." if limit is not None and len(text) > limit else "")


def duration(seconds: float) -> str:
    """A length of time in its two largest units, such as "2 h 1 min"."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
