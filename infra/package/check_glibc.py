#!/usr/bin/env python3
"""check_glibc.py ZIP... : refuses a bootstrap that needs a newer glibc than Lambda has, or that is no program for Lambda.

Amazon Linux 2023, under the provided.al2023 runtime, has glibc 2.34. A newer symbol would let everything deploy, and then
every start fail with "version `GLIBC_2.36' not found"; so it is refused here.
"""

import io
import sys
import zipfile

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

NEWEST = (2, 34)
MACHINES = {"x86_64": "EM_X86_64", "arm64": "EM_AARCH64"}


def main(arguments):
    architecture, *zips = arguments
    refused = [f"{path}: {reason}" for path in zips if (reason := why_refused(path, architecture))]
    for line in refused:
        print(f"refused: {line}", file=sys.stderr)
    if not refused:
        print(f"{len(zips)} zips need no newer glibc than {'.'.join(map(str, NEWEST))}")
    return 1 if refused or not zips else 0


def why_refused(path, architecture):
    """The reason why Lambda could not run the zip's bootstrap, or None."""
    with zipfile.ZipFile(path) as archive:
        if "bootstrap" not in archive.namelist():
            return "it holds no bootstrap"
        if not archive.getinfo("bootstrap").external_attr >> 16 & 0o111:
            return "its bootstrap is not executable"
        program = archive.read("bootstrap")
    try:
        elf = ELFFile(io.BytesIO(program))
        if elf["e_machine"] != MACHINES[architecture]:
            return f"it is a program for {elf['e_machine']}, not for {architecture}"
        names = needed_versions(elf)
    except ELFError as error:
        return f"its bootstrap is no program: {error}"
    newer = sorted({name for name in names if is_newer(name)})
    return f"it needs {', '.join(newer)}" if newer else None


def needed_versions(elf):
    """Every symbol version that the program asks of its shared libraries, such as GLIBC_2.17."""
    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for _, versions in section.iter_versions():
                yield from (version.name for version in versions)


def is_newer(name):
    """GLIBC_2.9 is older than GLIBC_2.34; GLIBC_PRIVATE and GLIBC_ABI_DT_RELR (2.36) name no release and count as newer."""
    library, _, version = name.partition("_")
    if library != "GLIBC":
        return False
    parts = version.split(".")
    return not all(part.isdigit() for part in parts) or tuple(map(int, parts)) > NEWEST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
