"""Exports: a million rows and a bucket through export-part, beside raw COPY and raw GET and PUT in the same run."""

import json
import subprocess

NOTES = [
    "export-rows, export-objects are rates: more is better",
    "baseline of export-rows: COPY of the same rows to a client that drops them; export-part also hashes and uploads",
    "baseline of export-objects: GET of each object and PUT of what it holds, eight at a time, one object each",
    "export-peak-memory: of the Lambda that exported the rows; the goal is below 256 MB",
]


def measure(directory):
    run = subprocess.run([directory / "tenantry", "--json", "bench-export"], stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    told = next(line for line in lines if "rows_mb_per_second" in line)
    yield "export-rows", told["rows_mb_per_second"], "MB/s", told["copy_mb_per_second"]
    yield "export-objects", told["objects_mb_per_second"], "MB/s", told["raw_objects_mb_per_second"]
    yield "export-peak-memory", told["peak_mb"], "MB"
