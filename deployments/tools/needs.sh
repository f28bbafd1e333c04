#!/usr/bin/env bash
# Makes sure of what the tests need beside Go: Dovecot (a real mail server to test against) and a C compiler (for the
# race detector). Installs it on Debian and its relatives when run as root; otherwise says what is missing. No test is
# ever skipped for lack of it.
set -euo pipefail

missing=()
PATH=$PATH:/usr/sbin:/usr/local/sbin
command -v dovecot >/dev/null || missing+=(dovecot-core)
modules=$(dirname "$(command -v dovecot || echo /usr/sbin/dovecot)")/../lib/dovecot
for protocol in imap pop3; do
  [ -x "$modules/$protocol" ] || [ -x "/usr/libexec/dovecot/$protocol" ] || missing+=("dovecot-${protocol}d")
done
command -v "${CC:-gcc}" >/dev/null || missing+=(gcc libc6-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "The tests need ${missing[*]} (names of Debian packages). Please install them, for example:" >&2
  echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# policy-rc.d keeps the package from starting a mail server: the tests start their own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
