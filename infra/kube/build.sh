#!/bin/bash
# ./build.sh [FILE] : builds one static binary (no cgo). Versions come from go.mod and go.sum alone.
set -euo pipefail
cd "$(dirname "$0")"
# The API server reports its version from these variables; without them it says v0.0.0-master.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=$(cut -d. -f2 <<<"$version")
variables=k8s.io/component-base/version
CGO_ENABLED=0 go build -trimpath -o "${1:-tenantry-kube}" \
  -ldflags "-s -w -X $variables.gitVersion=$version -X $variables.gitMajor=1 -X $variables.gitMinor=$minor" .
