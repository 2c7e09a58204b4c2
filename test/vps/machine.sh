# shellcheck shell=bash
# Sourced by the scripts here: machines with a systemd of their own, made from a distribution's packages, and what to do in them.
set -euo pipefail
cache="${XDG_CACHE_HOME:-$HOME/.cache}/claude-api-vps"
anthropic_port=18990
url=http://127.0.0.1:8001
nspawn_options=()
app=/home/claude/claude-api
failures=0

# ok WHAT COMMAND...: one line for a person to read
ok() {
  local what="$1"
  shift
  if "$@" >"$folder/output" 2>&1; then
    echo "ok      $what"
  else
    echo "NOT OK  $what"
    tail -n 20 "$folder/output"
    failures=$((failures + 1))
  fi
}

leader() { cat "/proc/$nspawn/task/$nspawn/children" 2>/dev/null; }
inside() {
  # shellcheck disable=SC2046 # one pid, and a blank
  nsenter -t $(leader) -m -u -i -p --root --wd env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ${NODE_EXTRA_CA_CERTS:+NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt} "$@"
}
sh_inside() { inside bash -c "$1"; }
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.3
  done
}

key() { inside sed -n 's/^CLAUDE_API_KEY=//p' "$app/.env"; }
# chat PROMPT [SESSION]: prints the answer to this user; the key goes by a file, not by the command line
user=1
chat() {
  printf 'header = "Authorization: Bearer %s"\nheader = "Content-Type: application/json"\n' "$(key)" >"$folder/curl"
  curl -s --max-time 300 -K "$folder/curl" "${@:3}" "$url/api/v1/chat" \
    -d "$(node -e 'console.log(JSON.stringify({ prompt: process.argv[1], user_id: Number(process.argv[2]), session_id: process.argv[3] || null }))' "$1" "$user" "${2:-}")"
}
member() { node -e 'console.log(JSON.parse(require("fs").readFileSync(0, "utf8") || "{}")[process.argv[1]] ?? "")' "$1"; }
answers() { [ "$(chat "$1" "${3:-}" | tee "$folder/answer" | member content)" = "$2" ] || { cat "$folder/answer"; return 1; }; }
healthy() { [ "$(curl -s "$url/health")" = '{"status":"ok"}' ]; }
main_pid() { inside systemctl show -p MainPID --value claude-api; }
service_processes() { sh_inside 'cat /sys/fs/cgroup/{,systemd/}system.slice/claude-api.service/cgroup.procs 2>/dev/null | sort -u | wc -l'; }
set_env() { sh_inside "printf '%s\n' $* >>$app/.env" && inside systemctl restart claude-api && until_true 60 healthy; }
# health_field NAME: as who has the key sees it
health_field() { curl -s -H "Authorization: Bearer $(key)" "$url/health" | member "$1"; }

boot() {
  # Where the machine's own cgroups are of the old kind, the newer systemd wants the new kind all the same.
  SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --boot --register=no --keep-unit --directory="$root" "${nspawn_options[@]}" --resolv-conf=replace-host </dev/null >"$folder/console" 2>&1 &
  nspawn=$!
  until_true 60 booted || { echo 'the machine did not boot'; cat "$folder/console"; exit 1; }
}
booted() { inside systemctl is-system-running --wait | grep -qE 'running|degraded'; }

clean_up() {
  if [ -n "${nspawn:-}" ]; then kill -KILL "$(leader)" "$nspawn" 2>/dev/null || true; fi
  kill "$anthropic" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$folder"
}

folder="$(mktemp -d)"
# The stand-in for Anthropic
node --import tsx test/vps/anthropic.ts "$anthropic_port" &
anthropic=$!
trap clean_up EXIT
until_true 10 curl -s "http://127.0.0.1:$anthropic_port/" || { echo 'the stand-in for Anthropic does not start: run "npm ci" first'; exit 1; }

# prepare SUITE[=MIRROR]: a fresh machine at $root with this commit in /root/claude-api, not booted
prepare() {
  local suite="${1%%=*}" mirror="" base
  base="$cache/$suite"
  # All of Ubuntu's suites are made as its first ones were.
  case "$1" in *=*) mirror="${1#*=} gutsy" ;; esac
  if [ ! -d "$base" ]; then
    mkdir -p "$cache"
    rm -rf "$base.new"
    # npm is in Ubuntu's universe; Debian has no such part, which debootstrap does not mind.
    # shellcheck disable=SC2086 # two words, or none
    debootstrap --variant=minbase --components=main,universe --include=systemd,systemd-sysv,ca-certificates "$suite" "$base.new" $mirror >"$folder/debootstrap" || { tail "$folder/debootstrap"; exit 1; }
    # Where Ubuntu 24.04 got AppArmor's profile for bubblewrap.
    if [ -n "$mirror" ]; then echo "deb ${mirror% *} $suite-updates main universe" >>"$base.new/etc/apt/sources.list"; fi
    mv "$base.new" "$base"
  fi
  root="$folder/$suite"
  cp -a "$base" "$root"
  # A machine whose network ends TLS itself passes its authorities on.
  cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null && chroot "$root" update-ca-certificates >/dev/null 2>&1
  # The names of the outer machine's resolver, which this one shares the network with.
  ln -sf /dev/null "$root/etc/systemd/system/systemd-resolved.service"
  mkdir "$root/root/claude-api"
  git archive HEAD | tar -x -C "$root/root/claude-api"
}

# Six users in turn, four times, the first one with a shell: all are warm in the end, with follow-ups in milliseconds.
six_users() {
  local round sessions=() slowest=0 ms
  for round in 1 2 3 4; do
    for user in 1 2 3 4 5 6; do
      if [ "$round" = 1 ]; then
        ok "user $user, turn $round" answers 'bash echo six' six
      else
        ok "user $user, turn $round" answered "turn $round" "${sessions[user]}"
      fi
      sessions[user]="$(member session_id <"$folder/answer")"
      ms="$(member duration_ms <"$folder/answer")"
      echo "        $ms ms"
      if [ "$round" -gt 2 ] && [ "${ms:-0}" -gt "$slowest" ]; then slowest="$ms"; fi
    done
  done
  user=1
  echo "        slowest turn of the last two rounds: $slowest ms"
  ok 'all six are warm' test "$(health_field warm)" -ge 6
  ok 'nothing failed' test "$(health_field failures)" = 0
  ok 'the sandbox is on' test "$(health_field sandbox)" = on
}
# answered PROMPT SESSION: the dialogue went on
answered() { chat "$@" >"$folder/answer"; [[ "$(member content <"$folder/answer")" == *" | $1" ]] || { cat "$folder/answer"; return 1; }; }

turn_off() {
  inside systemctl poweroff 2>/dev/null || true
  wait "$nspawn" || true
  nspawn=''
}

