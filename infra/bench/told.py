"""What a benchmark of the command line says at its end."""

import json
import subprocess


def told(directory, command, key):
    """Runs `tenantry --json COMMAND`, built in this directory, and returns the first of its JSON lines that has this key."""
    run = subprocess.run([directory / "tenantry", "--json", command], stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return next(line for line in lines if key in line)
