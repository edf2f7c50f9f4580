#!/bin/sh
# Installs a lock file into the image's Python: install.sh torch.txt. Called by the Dockerfile.
#
# Build secrets, which leave nothing in the image, tell where packages come from if not from PyPI itself:
#   --secret id=index,env=PIP_INDEX_URL --secret id=certificates,src=<PEM file>
set -eu
cd "$(dirname "$0")"

if [ -f /run/secrets/index ]; then
    PIP_INDEX_URL=$(cat /run/secrets/index)
    export PIP_INDEX_URL UV_DEFAULT_INDEX="$PIP_INDEX_URL"
fi
if [ -f /run/secrets/certificates ]; then
    export PIP_CERT=/run/secrets/certificates SSL_CERT_FILE=/run/secrets/certificates
fi

# uv takes half the time of pip; it doesn't stay in the image.
python3 -m venv /tmp/uv
/tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r uv.txt
/tmp/uv/bin/uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode --require-hashes -r "$1"
rm -r /tmp/uv
