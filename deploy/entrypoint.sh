#!/bin/sh
# Sets the variable NAME to the content of the file that NAME_FILE names, as secrets of compose and swarm come.
# tini collects the processes of Ray that lose their parent, and passes signals on.
set -e
for name in HF_TOKEN PGPASSWORD WEBHOOK_SECRETS; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        content=$(cat "$file")
        export "$name=$content"
    fi
done
exec tini -- whisperx-serve "$@"
