"""Fetch the page's plotting libraries again from npm and hold them against their hashes: `make vendor`.

The files lie in the repository, so nobody needs npm to make a report. To move to another version, change it in
`assets/vendor/vendor.json`, run this, look at what changed, and write the new hashes that it tells.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parent / "assets" / "vendor"


def packages() -> list[dict[str, str]]:
    """What is vendored: name, version, licence, the member of the package, our file and its sha256."""
    listed: dict[str, Any] = json.loads((VENDOR / "vendor.json").read_text())
    return list(listed["packages"])


def fetch(package: dict[str, str], work: Path) -> bytes:
    """The member's bytes, out of the package as the registry has it (npm checks the package's own hash)."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("make vendor needs npm (Debian: apt-get install npm)")
    asked = f"{package['name']}@{package['version']}"
    told = subprocess.run([npm, "pack", "--silent", asked], cwd=work, capture_output=True, text=True)
    if told.returncode or not told.stdout.strip():
        last = (told.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SystemExit(f"npm pack {asked} ended with {told.returncode}: {last}")
    with tarfile.open(work / told.stdout.strip().splitlines()[-1]) as archive:
        try:
            member = archive.extractfile(f"package/{package['member']}")
        except KeyError:
            member = None
        if member is None:
            raise SystemExit(f"{asked} has no file {package['member']}")
        return member.read()


def main() -> int:
    """Fetch every package; write the files whose hash is the listed one, and tell the others. 1 where one differs."""
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        for package in packages():
            content = fetch(package, Path(work))
            found = hashlib.sha256(content).hexdigest()
            if found == package["sha256"]:
                (VENDOR / package["file"]).write_bytes(content)
                print(f"{package['file']}: {package['version']}, as listed")
            else:
                wrong = 1
                print(f"{package['file']}: sha256 is {found}, listed is {package['sha256']}", file=sys.stderr)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
