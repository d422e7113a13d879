#!/usr/bin/env bash
# Builds the image and runs it as the platform does: no network, a user without rights, all but /output and /tmp
# read-only. INPUT is what the platform puts into /input.
set -euo pipefail
if (($# != 2)); then
  echo "usage: $0 INPUT OUTPUT" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
image=nnunet-deconver-submission
mkdir -p "$2"
chmod a+rwx "$2"
input=$(cd "$1" && pwd)
output=$(cd "$2" && pwd)
# Triton runs what it compiled from /tmp, which is not allowed there unless it is said.
options=(--platform linux/amd64 --network none --read-only --tmpfs /tmp:exec)
options+=(--volume "$input:/input:ro" --volume "$output:/output")

model= container=
clean_up() {
  if [[ -n $container ]]; then
    docker logs "$container"
    docker rm --force "$container" > /dev/null
  fi
  rm -rf "$model"
}
trap clean_up EXIT

if [[ -f "$here/model.tar.gz" ]]; then
  model=$(mktemp -d)
  tar -xzf "$here/model.tar.gz" -C "$model"
  chmod -R a+rX "$model"
  options+=(--volume "$model:/opt/ml/model:ro")
fi
if docker info --format '{{json .Runtimes}}' | grep -q nvidia; then
  options+=(--gpus all)
fi

docker build --platform linux/amd64 --tag "$image" "$here"
api=$(docker inspect --format '{{index .Config.Labels "org.grand-challenge.api-method"}}' "$image")
if [[ $api != invoke ]]; then
  docker run --rm "${options[@]}" "$image"
  exit
fi

container=$(docker run --detach "${options[@]}" "$image")
docker exec --interactive "$container" python - << 'PYTHON'
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

# As long as grand-challenge waits.
for _ in range(60):
    try:
        urlopen("http://127.0.0.1:4743/health", timeout=10)
        break
    except URLError:
        time.sleep(5)
try:
    answer = urlopen(Request("http://127.0.0.1:4743/invoke", method="POST")).status
except URLError as error:
    sys.exit(f"/invoke: {error}")
print(f"/invoke: {answer}")
sys.exit(answer != 201)
PYTHON
