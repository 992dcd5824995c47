#!/usr/bin/env bash
# Prepares a node for Ray's cluster launcher: setup.sh [PACKAGE...], what the launcher itself needs on the head.
# The environment variable SHARED, where it is set, is an NFS export to mount at /shared.
set -euo pipefail
cd ~/rankfront

install() { sudo apt-get -o DPkg::Lock::Timeout=300 -q update && sudo apt-get -o DPkg::Lock::Timeout=300 -qy install "$@"; }

if [[ -n ${SHARED:-} ]] && ! mountpoint -q /shared; then
  install nfs-common
  sudo mkdir -p /shared
  sudo mount -t nfs4 "$SHARED" /shared
  sudo chown "$(id -u):$(id -g)" /shared
fi

if [[ ! -x uv/bin/uv ]]; then
  python3 -c 'import ensurepip' || install python3-venv
  python3 -m venv uv
  uv/bin/pip install --quiet uv==0.13.9
fi
uv/bin/uv venv --quiet --allow-existing --python 3.11 venv # the same Python everywhere, whatever the image has
uv/bin/uv pip install --quiet --python venv/bin/python -c constraints.txt dist/rankfront-*.whl 'psycopg[binary]' "$@"

chmod 600 ~/.ray/auth_token
cat >env.sh <<'END_OF_ENV'
export PATH=~/rankfront/venv/bin:$PATH
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/auth_token RAY_USAGE_STATS_ENABLED=0
END_OF_ENV
grep -qxF '. ~/rankfront/env.sh' ~/.bashrc || echo '. ~/rankfront/env.sh' >>~/.bashrc # the launcher's commands read it
