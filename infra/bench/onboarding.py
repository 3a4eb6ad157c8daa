"""Onboarding: 100 tenants started at once, beside the same steps run back to back by one process in the same run."""

from told import told

NOTES = [
    "baseline of onboarding: one process, without state machine and Lambdas, one tenant after another",
]


def measure(directory):
    line = told(directory, "bench-onboarding", "floor_p50")
    yield "onboarding-alone-p50", line["alone_p50"], "ms", line["floor_p50"]
    yield "onboarding-p50", line["p50"], "ms", line["floor_p50"]
    yield "onboarding-p99", line["p99"], "ms", line["floor_p99"]
    # What a hundred take together, beside a hundred of the floor one after another.
    yield "onboarding-100", line["total_seconds"] * 1000, "ms", line["floor_p50"] * line["tenants"]
