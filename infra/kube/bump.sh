#!/bin/bash
# ./bump.sh 1.35.8 : moves go.mod to another Kubernetes release, the requirement and every staging module with it.
set -euo pipefail
cd "$(dirname "$0")"
release=${1#v}
staging=0.${release#1.}
sed -i -E "s#(k8s.io/kubernetes) v1\.[0-9.]+#\1 v$release#; s#(k8s.io/[a-z-]+) v0\.[0-9]+\.[0-9]+\$#\1 v$staging#" go.mod
# Staging modules that came with 1.36.
if [ "$(cut -d. -f2 <<<"$release")" -ge 36 ]; then
  for module in cri-streaming streaming; do
    go mod edit -replace "k8s.io/$module=k8s.io/$module@v$staging"
  done
fi
go mod tidy
