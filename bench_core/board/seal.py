"""For maintainers: write the sha256 of a board's tables, as they are on disk, to its manifest.

Needed for a board of an earlier version, which has no digests, or one that was edited on purpose:

python -m bench_core.board.seal results/quick
"""

import json
import sys
from pathlib import Path

from bench_core.board.board import read_board, write_text
from bench_core.board.consistency import refuse_contradictions
from bench_core.board.files import MANIFEST, digest_of, read_files

__all__ = ["seal"]


def seal(folder: Path) -> dict[str, str]:
    """Write the sha256 of every table in ``folder`` to its manifest, and return them by file name.

    Raises:
        UsageError: the folder holds no board, or its files contradict each other.
        StoreError: the manifest cannot be written.
    """
    refuse_contradictions(read_board(folder, verified=False), str(folder))
    manifest, contents = read_files(folder, verified=False)
    digests = {f"{name}.csv": digest_of(content) for name, content in contents.items()}
    write_text(folder / MANIFEST, json.dumps({**manifest, "sha256": digests}, indent=1, sort_keys=True) + "\n")
    return digests


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write(f"{name}: {len(seal(Path(name)))} tables\n")
