"""Makes the book's own modules (docs/book.py, docs/_ext/) importable."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
for folder in (DOCS, DOCS / "_ext"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
