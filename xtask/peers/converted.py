"""Where the peers' scripts keep what they made of a GGUF file, by what is in the file. Needs nothing but Python."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def folder_of(gguf: Path, cache: Path, dtype: str) -> Path:
    """The folder in `cache` for what is made of this file in this type."""
    sha256 = hashlib.sha256()
    with gguf.open("rb") as file:
        while part := file.read(1 << 20):
            sha256.update(part)
    return cache / f"hf-{dtype}-{sha256.hexdigest()[:16]}"


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Has `make` fill the folder, unless it is there whole. Of several processes one does it, and the others wait."""
    if (folder / "complete").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            # What an earlier version left half made, in its place.
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(partial, folder)
    return folder
