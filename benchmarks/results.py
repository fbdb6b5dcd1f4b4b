"""benchmarks/RESULTS.md: every benchmark command owns one section of it and leaves the others alone."""

import re
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def put_section(title: str, body: str, command: str) -> None:
    """Write the section ``title``, or put it at the end of the file; ``command`` is what makes it."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    section = f"<!-- {title} -->\n## {title}\n\nWritten by `{command}`.\n\n{body.strip()}\n<!-- end -->\n"
    old = re.compile(rf"<!-- {re.escape(title)} -->\n.*?<!-- end -->\n", re.DOTALL)
    without = text.rstrip("\n") + "\n\n" + section
    text = old.sub(lambda _: section, text) if old.search(text) else without
    RESULTS.write_text(text)
