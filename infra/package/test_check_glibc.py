#!/usr/bin/env python3
"""That check_glibc.py refuses what it should: programs are linked by zig against a glibc of the test's choosing."""

import pathlib
import subprocess
import sys
import tempfile
import unittest
import zipfile

import check_glibc

# arc4random came with glibc 2.36 (July 2022).
NEW = "#include <stdlib.h>\nint main(void) { return arc4random() == 0; }\n"
OLD = "#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n"


class CheckGlibc(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = pathlib.Path(scratch.name)

    def link(self, source, target):
        (self.scratch / "main.c").write_text(source)
        program = self.scratch / "program"
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", "-target", target, "-o", program, self.scratch / "main.c"], check=True
        )
        return program.read_bytes()

    def why_refused(self, program, name="bootstrap", mode=0o755):
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        with zipfile.ZipFile(self.scratch / "bootstrap.zip", "w") as archive:
            archive.writestr(entry, program)
        return check_glibc.why_refused(self.scratch / "bootstrap.zip", "x86_64")

    def test_a_program_for_lambdas_glibc_passes(self):
        self.assertIsNone(self.why_refused(self.link(OLD, "x86_64-linux-gnu.2.34")))

    def test_a_newer_symbol_is_refused_by_its_name(self):
        self.assertEqual(self.why_refused(self.link(NEW, "x86_64-linux-gnu.2.36")), "it needs GLIBC_2.36")

    def test_another_architecture_is_refused(self):
        program = self.link(OLD, "aarch64-linux-gnu.2.34")
        self.assertEqual(self.why_refused(program), "it is a program for EM_AARCH64, not for x86_64")

    def test_what_is_no_program_is_refused(self):
        self.assertIn("no program", self.why_refused(b"#!/bin/sh\n"))
        self.assertIn("not executable", self.why_refused(b"", mode=0o644))
        self.assertIn("no bootstrap", self.why_refused(b"", name="create-bucket"))

    def test_versions_are_compared_as_numbers(self):
        older, newer = ["GLIBC_2.9", "GLIBC_2.34", "GLIBC_2.3.4", "GCC_3.0"], ["GLIBC_2.35", "GLIBC_2.100", "GLIBC_PRIVATE"]
        self.assertEqual([name for name in older + newer if check_glibc.is_newer(name)], newer)


if __name__ == "__main__":
    unittest.main()
