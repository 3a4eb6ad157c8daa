"""Onboarding: 100 tenants started at once, beside the same steps run back to back by one process in the same run."""

import json
import subprocess

NOTES = [
    "baseline of onboarding: one process, without state machine and Lambdas, one tenant after another",
]


def measure(directory):
    run = subprocess.run([directory / "tenantry", "--json", "bench-onboarding"], stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    told = next(line for line in lines if "floor_p50" in line)
    yield "onboarding-alone-p50", told["alone_p50"], "ms", told["floor_p50"]
    yield "onboarding-p50", told["p50"], "ms", told["floor_p50"]
    yield "onboarding-p99", told["p99"], "ms", told["floor_p99"]
    # What a hundred take together, beside a hundred of the floor one after another.
    yield "onboarding-100", told["total_seconds"] * 1000, "ms", told["floor_p50"] * told["tenants"]
