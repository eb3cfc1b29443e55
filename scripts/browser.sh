#!/usr/bin/env bash
# Debian's Chromium, for tests of the report in a browser and for pictures of it. Needs root or sudo.
set -euo pipefail
command -v chromium >/dev/null && exit 0
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk >/dev/null
