# Installs what some tests need beside Python's packages: PostgreSQL, Chromium and Prometheus, from Debian.
# It does so as root in a container only: elsewhere a database server would start, and stay.
set -e
if command -v psql && command -v chromium && command -v prometheus; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || [ -d /run/systemd/system ] || ! command -v apt-get; then
  echo "Tests of PostgreSQL, the page and metrics are skipped: apt-get install postgresql chromium prometheus"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update && apt-get install -y --no-install-recommends postgresql chromium prometheus || {
  echo "PostgreSQL, Chromium and Prometheus could not be installed; tests that need them are skipped (.venv/test-programs.log)."
  exit 1
}
