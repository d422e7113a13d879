#!/usr/bin/env bash
# Builds the image and runs it as grand-challenge does: no network, a user without rights, /input read-only.
# INPUT holds inputs.json with the folders of its sockets, or images.
set -euo pipefail
if (($# != 2)); then
  echo "usage: $0 INPUT OUTPUT" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$2"
chmod a+rwx "$2"
input=$(cd "$1" && pwd)
output=$(cd "$2" && pwd)
options=(--rm --platform linux/amd64 --network none --volume "$input:/input:ro" --volume "$output:/output")

if [[ -f "$here/model.tar.gz" ]]; then
  model=$(mktemp -d)
  trap 'rm -rf "$model"' EXIT
  tar -xzf "$here/model.tar.gz" -C "$model"
  chmod -R a+rX "$model"
  options+=(--volume "$model:/opt/ml/model:ro")
fi
if docker info --format '{{json .Runtimes}}' | grep -q nvidia; then
  options+=(--gpus all)
fi

docker build --platform linux/amd64 --tag nnunet-deconver-submission "$here"
docker run "${options[@]}" nnunet-deconver-submission
