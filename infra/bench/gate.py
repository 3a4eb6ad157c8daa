"""The gate: decisions beside the raw script through the same client, a service behind it, and how soon a suspension is felt."""

import json
import subprocess

NOTES = [
    "baseline of gate-throughput and gate-p99: the same script by EVALSHA over one multiplexed connection, 64 tasks, same run",
    "gate-throughput and gate-layer are rates: more is better; baseline of gate-layer: the same axum service without the layer",
    "suspension-latency-p99: from the commit to the first refused request; the goal is below 50 ms",
]


def measure(directory):
    run = subprocess.run([directory / "tenantry", "--json", "bench-gate"], stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    told = next(line for line in lines if "raw_per_second" in line)
    yield "gate-throughput", told["per_second"], "/s", told["raw_per_second"]
    yield "gate-p50", told["p50"], "ms", told["raw_p50"]
    yield "gate-p99", told["p99"], "ms", told["raw_p99"]
    yield "gate-layer", told["layered_per_second"], "/s", told["bare_per_second"]
    yield "suspension-latency-p99", told["suspension_p99"], "ms"
