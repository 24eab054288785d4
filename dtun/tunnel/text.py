"""Words from the network, made harmless for logs and terminals."""


def harmless(text: str, limit: int = 120) -> str:
    """On one line, printable, of bounded length."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:limit])
    return shown + ("..." if len(text) > limit else "")
