"""Start-up of every Lambda binary: from spawning it to its asking for the first event, median of 15 starts.

The server here is the little of the Lambda Runtime API that a start needs: it takes the request for the next event and
never answers it. Peak memory is the process's own high-water mark at that moment.
"""

import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import time

STARTS = 15
# A start that takes longer than this has hung.
TIMEOUT_SECONDS = 10
NEXT_EVENT = b"GET /2018-06-01/runtime/invocation/next"
NOTES = ["The same on this kind of machine, as measured once: Node 114 ms and 69 MB, Python 296 ms and 62 MB."]

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ROOT / "functions" / "lambdas" / "src" / "bin"
TEMPLATE = ROOT / "infra" / "template.yaml"

# Every setting that a function of the template may be given, so that each main wires all its clients. Nothing is called at
# start-up; were it, port 9 (discard) would refuse it at once.
SETTINGS = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_LAMBDA_FUNCTION_NAME": "bench",
    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
    "STAGE": "bench",
    "BASE_DOMAIN": "bench.test",
    "HOSTED_ZONE_ID": "Z0000000000000",
    "INGRESS_TARGET": "ingress.bench.test",
    "DNS_SERVERS": "127.0.0.1:9",
    "REGISTRY_SECRET": "bench/registry",
    "POSTGRES_CA_BUNDLE": "",
    "EVENT_BUS_NAME": "bench",
    "CONFIG_TABLE": "bench",
    "TENANT_BOUNDARY_ARN": "arn:aws:iam::000000000000:policy/bench",
    "ACCOUNT_ID": "000000000000",
    "STACK_ROLE_ARNS": "arn:aws:iam::000000000000:role/bench",
    "EKS_CLUSTER": "bench",
    "KUBECONFIG": "",
    "SENDER_ADDRESS": "bench@bench.test",
    "REDIS_URL": "redis://127.0.0.1:9",
    "WHEN_BLIND": "closed",
    "PROVISION_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:provision-tenant",
    "CHANGE_PLAN_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:change-plan",
    "FOLLOW_BILLING_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:follow-billing",
    "ACCEPT_INVITE_URL": "http://127.0.0.1:9/",
    "APP_DATABASE_SECRET": "bench/app",
    "INVITE_KEY_SECRET": "bench/invite",
    "INVITE_SECONDS": "604800",
    "SIGN_UP_EXPIRY_SECONDS": "604800",
    "RETRY_PAUSES": "300,1800,7200",
    "BUCKET_QUOTA": "100",
    "NAMESPACE_QUOTA": "100",
    "RECORD_QUOTA": "100",
    "INSTANCE_QUOTA": "100",
    "DEDICATED_INSTANCE_CLASS": "db.t4g.micro",
    "DEDICATED_STORAGE_GIB": "20",
    "DEDICATED_PORT": "5432",
    "DEDICATED_SUBNET_GROUP": "",
    "DEDICATED_SECURITY_GROUPS": "",
    "STRIPE_SECRET": "bench/stripe",
    "STRIPE_API_URL": "http://127.0.0.1:9",
    "OFFBOARD_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:offboard-tenant",
    "DELETE_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:delete-tenant",
    "REACTIVATE_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:reactivate-tenant",
    "FINISHING_MACHINE_ARNS": "arn:aws:states:us-east-1:000000000000:stateMachine:change-plan",
    "HOLD_SECONDS": "2592000",
    "LINK_SECONDS": "2592000",
    "DOWNSTREAM_SECONDS": "86400",
    "EXPORTS_BUCKET": "bench-exports",
    "EXPORT_KEY_SECRET": "bench/export",
    "DOWNLOAD_EXPORT_URL": "http://127.0.0.1:9/",
    "CERTIFICATES_BUCKET": "bench-certificates",
    "CERTIFICATE_KEY": "bench",
    "BACKUP_RETENTION_DAYS": "35",
    "CACHE_PATH_PATTERN": "/{slug}/*",
    "DISTRIBUTION_ID": "",
}


def measure(directory):
    given = set(re.findall(r"^ +([A-Z][A-Z0-9]*_[A-Z0-9_]+): ", TEMPLATE.read_text(), re.MULTILINE))
    if unknown := sorted(given - SETTINGS.keys()):
        sys.exit(f"{TEMPLATE.name} gives functions settings that SETTINGS here lacks: {', '.join(unknown)}")
    names = sorted(path.stem for path in BINARIES.glob("*.rs"))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        sys.exit(f"not built in {directory}: {', '.join(missing)} (make build)")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_SECONDS)
        for name in names:
            start(server, directory / name)  # not counted: it brings the file into the page cache
            starts = [start(server, directory / name) for _ in range(STARTS)]
            yield f"start-up/{name}", statistics.median(seconds for seconds, _ in starts) * 1000, "ms"
            yield f"peak-memory/{name}", max(size for _, size in starts) / 1e6, "MB"


def start(server, binary):
    """Seconds until the binary asks for its first event, and its peak memory in bytes."""
    host, port = server.getsockname()
    environment = SETTINGS | {"AWS_LAMBDA_RUNTIME_API": f"{host}:{port}", "PATH": os.environ["PATH"]}
    begun = time.perf_counter()
    process = subprocess.Popen([binary], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TIMEOUT_SECONDS)
            request = connection.recv(4096)
            seconds = time.perf_counter() - begun
            if not request.startswith(NEXT_EVENT):
                sys.exit(f"{binary.name} did not ask for an event but sent {request.splitlines()[:1]}")
            return seconds, peak_memory(process.pid)
    except TimeoutError:
        process.kill()
        said = process.stderr.read().decode(errors="replace")
        sys.exit(f"{binary.name} did not ask for an event in {TIMEOUT_SECONDS} s; it said: {said}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def peak_memory(pid):
    """Not getrusage: a child's figure there starts with its parent's."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no VmHWM")
