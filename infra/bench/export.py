"""Exports: a million rows and a bucket through export-part, beside raw COPY and raw GET and PUT in the same run."""

from told import told

NOTES = [
    "export-rows, export-objects are rates: more is better",
    "baseline of export-rows: COPY of the same rows to a client that drops them; export-part also hashes and uploads",
    "baseline of export-objects: GET of each object and PUT of what it holds, eight at a time, one object each",
    "export-peak-memory: of the Lambda that exported the rows; the goal is below 256 MB",
]


def measure(directory):
    line = told(directory, "bench-export", "rows_mb_per_second")
    yield "export-rows", line["rows_mb_per_second"], "MB/s", line["copy_mb_per_second"]
    yield "export-objects", line["objects_mb_per_second"], "MB/s", line["raw_objects_mb_per_second"]
    yield "export-peak-memory", line["peak_mb"], "MB"
