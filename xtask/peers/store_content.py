"""Prints the SHA-256 of what the SQLite stores at these paths hold; one that is not there, or not yet a store, holds nothing.

    python xtask/peers/store_content.py STORE..

Copies are read, logs and journals with them, so that nothing is changed.
"""

import hashlib
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

digest = hashlib.sha256()
for store in map(Path, sys.argv[1:]):
    with tempfile.TemporaryDirectory() as folder:
        for end in ("", "-wal", "-journal"):
            if (file := store.with_name(store.name + end)).exists():
                shutil.copy(file, Path(folder) / ("copy" + end))
        connection = sqlite3.connect(Path(folder) / "copy")
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1")]
        for table in tables:
            for row in connection.execute(f"SELECT * FROM {table}"):
                digest.update(repr((table, row)).encode())
        connection.close()
print(digest.hexdigest())
