"""The gate: decisions beside the raw script through the same client, a service behind it, and how soon a suspension is felt."""

from told import told

NOTES = [
    "baseline of gate-throughput and gate-p99: the same script by EVALSHA over one multiplexed connection, 64 tasks, same run",
    "gate-throughput and gate-layer are rates: more is better; baseline of gate-layer: the same axum service without the layer",
    "suspension-latency-p99: from the commit to the first refused request; the goal is below 50 ms",
]


def measure(directory):
    line = told(directory, "bench-gate", "raw_per_second")
    yield "gate-throughput", line["per_second"], "/s", line["raw_per_second"]
    yield "gate-p50", line["p50"], "ms", line["raw_p50"]
    yield "gate-p99", line["p99"], "ms", line["raw_p99"]
    yield "gate-layer", line["layered_per_second"], "/s", line["bare_per_second"]
    yield "suspension-latency-p99", line["suspension_p99"], "ms"
