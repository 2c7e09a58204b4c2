#!/usr/bin/env bash
# Installs claude-api as a systemd service on Debian 12/13 or Ubuntu 22.04/24.04; a second run updates it. See --help.
# shellcheck disable=SC2317 # what trap and quietly call is reached
[ -n "${BASH_VERSION:-}" ] || { echo 'install.sh: error: needs bash; try: sudo bash install.sh' >&2; exit 2; }
set -euo pipefail
umask 022

# Where "curl … | sudo bash" gets the code: a .tar.gz of this repository. Not used when run from a copied folder.
source_url="${CLAUDE_API_SOURCE:-}"
# The Claude CLI the tests run on; --claude asks for another. A newer one that is already installed stays.
claude_version=2.1.330
# Taken from npm where the machine has no Node 20 or newer.
node_major=24

unit=/etc/systemd/system/claude-api.service
state=/var/lib/claude-api
sources=(install.sh claude-api.service package.json package-lock.json .npmrc tsconfig.json tsconfig.build.json src README.md CHANGELOG.md LICENSE .env.example)
# In the comment field of the user, by which --purge knows that this script made it.
user_comment='claude-api service'

usage() {
  cat <<END
usage: sudo ./install.sh [options]

Installs claude-api, or updates it to this version, and starts it. Key, .env, login and dialogues are kept.

  --port N          the port of a new .env (8001)
  --user NAME       the user the server runs as, made if need be (claude)
  --copy-login      give the server the Claude login of the user who runs sudo, or of root
  --claude VERSION  another version of the Claude CLI, such as latest ($claude_version or newer)
  --dry-run         say what would be done, and do nothing
  --uninstall       remove the service and its code; .env, login and dialogues stay
  --purge           remove these too, and the user
  --help
END
}

say() { echo "==> $*"; }
warn() { echo "install.sh: warning: $*" >&2; }
die() {
  echo "install.sh: error: $*" >&2
  exit 1
}
misuse() {
  echo "install.sh: error: $*; try --help" >&2
  exit 2
}

# step WHAT: says what comes now; false in a dry run
step() {
  if $dry_run; then
    echo "would be: $*"
    return 1
  fi
  say "$@"
}

# quietly WHAT COMMAND...: shows the command's output only when it fails
quietly() {
  local what="$1"
  shift
  "$@" >"$scratch/output" 2>&1 || {
    tail -n 20 "$scratch/output" >&2
    die "$what failed"
  }
}

main() {
  # So that no command can read the rest of this script where it comes from a pipe.
  exec </dev/null
  export PATH="$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" LC_ALL=C
  unset NODE_OPTIONS CDPATH
  action=install user='' port='' dry_run=false copy_login=false asked_claude=''
  parse_options "$@"
  if [ "$(id -u)" -ne 0 ]; then die "must run as root, and changed nothing; try: sudo ./install.sh"; fi
  exec 9>/run/lock/claude-api-install || die 'cannot write /run/lock'
  flock -n 9 || die 'another install.sh is at work'
  scratch="$(mktemp -d)"
  done_so_far=()
  trap clean_up EXIT
  trap 'exit 130' INT TERM HUP
  find_user
  if [ "$action" = install ]; then install_service; else remove_service; fi
}

parse_options() {
  local option value
  while [ $# -gt 0 ]; do
    option="$1"
    shift
    case "$option" in
      --user | --port | --claude)
        [ $# -gt 0 ] || misuse "$option needs a value"
        value="$1"
        shift
        ;;
      --*=*)
        value="${option#*=}"
        option="${option%%=*}"
        ;;
      *) value='' ;;
    esac
    case "$option" in
      --user) user="$value" ;;
      --port) port="$value" ;;
      --claude) asked_claude="$value" ;;
      --copy-login | --dry-run | --uninstall | --purge | --help) [ -z "$value" ] || misuse "$option takes no value" ;;&
      --copy-login) copy_login=true ;;
      --dry-run) dry_run=true ;;
      --uninstall) [ "$action" = purge ] || action=uninstall ;;
      --purge) action=purge ;;
      --help)
        usage
        exit 0
        ;;
      *) misuse "unknown option $option" ;;
    esac
  done
  [[ -z "$port" || ("$port" =~ ^[1-9][0-9]{3,4}$ && "$port" -ge 1024 && "$port" -le 65535) ]] || misuse '--port: expected 1024 to 65535'
  [[ -z "$user" || "$user" =~ ^[a-z_][a-z0-9_-]{0,31}$ ]] || misuse '--user: expected a name such as claude'
  [[ -z "$asked_claude" || "$asked_claude" =~ ^(latest|stable|[0-9]+\.[0-9]+\.[0-9]+)$ ]] || misuse '--claude: expected a version such as 2.1.330, or latest'
}

# What is gone, and what stays after a failure, is said.
clean_up() {
  local status=$?
  trap - EXIT INT TERM HUP
  rm -rf "$scratch" ${app:+"$app/releases/.new" "$app/cli/.new" "$app/node.new"}
  if [ "$status" -ne 0 ] && [ ${#done_so_far[@]} -eq 0 ]; then
    echo 'Nothing was changed.' >&2
  elif [ "$status" -ne 0 ]; then
    echo 'Done before the failure, and left so:' >&2
    printf '  %s\n' "${done_so_far[@]}" >&2
    echo 'Run install.sh again to go on, or with --uninstall to remove it.' >&2
  fi
  if [ "$status" -ne 0 ] && [ -e "$app/current" ] && systemctl is-active --quiet claude-api; then
    echo 'The service runs as before.' >&2
  fi
  exit "$status"
}

# Sets user, group, home and app: of the option, else of the installed service, else claude.
find_user() {
  installed_user=''
  if is_our_unit; then installed_user="$(sed -n 's/^User=//p' "$unit")"; fi
  user="${user:-${installed_user:-claude}}"
  local entry
  entry="$(getent passwd "$user")" || true
  home="$(cut -d: -f6 <<<"$entry")"
  home="${home:-/home/$user}"
  group="$(id -gn "$user" 2>/dev/null)" || group="$user"
  app="$home/claude-api"
}

user_exists() { getent passwd "$user" >/dev/null; }
is_our_user() { [ "$(getent passwd "$user" | cut -d: -f5)" = "$user_comment" ]; }
is_our_unit() { head -n 1 "$unit" 2>/dev/null | grep -q 'install\.sh'; }
as_user() { runuser -u "$user" -- env -i HOME="$home" USER="$user" LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin "$@"; }

# ---------------------------------------------------------------- install

install_service() {
  find_source
  find_login
  check
  if user_exists; then :; else make_user; fi
  find_node
  install_claude
  build_release
  make_env
  copy_login
  switch_over
}

# Sets source_dir: the folder this script lies in, else a download of source_url.
find_source() {
  source_dir="$(cd "$(dirname "${BASH_SOURCE[0]:-}")" 2>/dev/null && pwd -P)" || source_dir=''
  [ -f "${BASH_SOURCE[0]:-}" ] && [ -f "$source_dir/src/main.ts" ] && return
  [ -n "$source_url" ] || die 'the code is not beside this script: run it from the copied folder, or set CLAUDE_API_SOURCE to the address of its .tar.gz'
  source_dir="$scratch/source"
  mkdir "$source_dir"
  say "downloading $source_url"
  quietly 'the download' download
}

download() {
  curl -fsSL "$source_url" -o "$scratch/source.tar.gz" || wget -qO "$scratch/source.tar.gz" "$source_url" || return
  tar -xzf "$scratch/source.tar.gz" --no-same-owner --strip-components=1 -C "$source_dir"
}

# Sets login: a credentials file that could be copied to the service user, or nothing.
find_login() {
  local name folder
  login=''
  for name in "${SUDO_USER:-}" root; do
    if [ -z "$name" ] || [ "$name" = "$user" ]; then continue; fi
    folder="$(getent passwd "$name" | cut -d: -f6)" || continue
    if [ -z "$login" ] && [ -f "$folder/.claude/.credentials.json" ]; then login="$folder/.claude/.credentials.json"; fi
  done
}

# Looks at everything that could stop us, changes nothing, and says all of it at once.
check() {
  problems=()
  check_machine
  check_user
  check_place
  check_env
  if $copy_login && [ -z "$login" ]; then problems+=('--copy-login: neither root nor the user who runs sudo has a Claude login'); fi
  [ ${#problems[@]} -eq 0 ] && return
  printf 'install.sh: error: %s\n' "${problems[@]}" >&2
  exit 1
}

check_machine() {
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) node_arch=x64 ;;
    Linux-aarch64) node_arch=arm64 ;;
    *) problems+=("this is $(uname -s) on $(uname -m): expected Linux on x86_64 or aarch64") ;;
  esac
  [ -d /run/systemd/system ] || problems+=('systemd does not run here; in a container use the Dockerfile')
  local tool missing=()
  for tool in systemctl journalctl useradd runuser sha256sum tar; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  [ ${#missing[@]} -eq 0 ] || problems+=("these programs are missing: ${missing[*]}")
  command -v npm >/dev/null || command -v apt-get >/dev/null || problems+=('neither npm nor apt-get is here: install Node.js 20 or newer with npm')
}

check_user() {
  if user_exists; then
    if [ "$(id -u "$user")" -eq 0 ]; then problems+=("the server must not run as $user, which is root: give another --user"); fi
    [[ "$home" =~ ^/[A-Za-z0-9._/-]+[A-Za-z0-9._-]$ && -d "$home" ]] || problems+=("the user $user has no usable home folder: give another --user")
  elif [ -e "$home" ]; then
    problems+=("$home is there, but no user $user: move it away, or make the user")
  fi
  if [ -n "$installed_user" ] && [ "$installed_user" != "$user" ]; then
    problems+=("the service is installed for the user $installed_user: first run install.sh --uninstall")
  fi
}

check_place() {
  local name free_kb
  for name in "${sources[@]}"; do [ -e "$source_dir/$name" ] || problems+=("the copied folder is not whole: $name is missing"); done
  if [ -e "$unit" ] && ! is_our_unit; then
    problems+=("there is another claude-api.service: remove it first (systemctl disable --now claude-api; rm $unit)")
  fi
  if [ ! -e "$app/current" ] && [ -n "$(find "$app" -mindepth 1 -maxdepth 1 ! -name .env ! -name releases ! -name cli ! -name 'node*' 2>/dev/null)" ]; then
    problems+=("$app is where the server goes, and other files are in it: move that folder away first (a .env may stay)")
  fi
  free_kb="$(df -Pk "$(if [ -d "$home" ]; then echo "$home"; else echo /home; fi)" | awk 'NR == 2 { print $4 }')"
  [ "$free_kb" -ge 1200000 ] || problems+=("$((free_kb / 1024)) MB of disk are free below $home: at least 1200 MB are needed")
}

check_env() {
  local configured env_file
  env_file="$(existing_env)"
  if [ -n "$env_file" ] && ! grep -qE '^[[:space:]]*(export[[:space:]]+)?CLAUDE_API_KEY[[:space:]]*=[[:space:]]*[^[:space:]#]' "$env_file"; then
    problems+=("$env_file has no CLAUDE_API_KEY: add the line CLAUDE_API_KEY=$(new_key)")
  fi
  configured="$(sed -n 's/^PORT=\([0-9]*\)$/\1/p' "${env_file:-/dev/null}" | tail -n 1)"
  if [ -n "$env_file" ] && [ -n "$port" ] && [ "$port" != "${configured:-8001}" ]; then
    problems+=("--port counts for a new .env only: set PORT=$port in $env_file")
  fi
  port="${configured:-${port:-8001}}"
  systemctl is-active --quiet claude-api 2>/dev/null && return
  if is_taken "$port"; then problems+=("port $port is taken by another program: stop that, or choose another port"); fi
}

# The .env that is there already: of an earlier run, else the one beside this script
existing_env() {
  local path
  for path in "$app/.env" "$source_dir/.env"; do
    if [ -f "$path" ]; then
      echo "$path"
      return
    fi
  done
}

new_key() { od -An -N32 -v -tx1 /dev/urandom | tr -d ' \n'; }

# is_taken PORT: whether anything listens there, by the kernel's table
is_taken() {
  { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true; } |
    awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && substr($2, length($2) - 4) == port { found = 1 } END { exit !found }'
}

# Its home belongs to root and is sticky: the user may write there, but not move the code away and put its own in its place.
make_user() {
  step "making the user $user with home $home" || return 0
  quietly useradd useradd --system --user-group --create-home --home-dir "$home" --shell /usr/sbin/nologin --comment "$user_comment" "$user"
  group="$user"
  chown "root:$group" "$home"
  chmod 1770 "$home"
  done_so_far+=("the user $user with $home")
}

# Sets node, which the service user can run; npm may come along from the distribution.
find_node() {
  node="$(usable_node)" && return
  if ! command -v npm >/dev/null; then
    step "installing npm and Node.js from the distribution (this takes a minute)" || { node=node; return; }
    export DEBIAN_FRONTEND=noninteractive
    quietly 'apt-get update' apt-get update
    quietly 'apt-get install npm' apt-get install -y --no-install-recommends npm ca-certificates
    done_so_far+=('the package npm')
    hash -r
    node="$(usable_node)" && return
  fi
  step "installing Node.js $node_major into $app/node" || { node=node; return; }
  rm -rf "$app/node.new"
  mkdir -p "$app/node.new"
  npm_install "$app/node.new" "node-linux-$node_arch@$node_major" npm@11
  rm -rf "$app/node"
  mv "$app/node.new" "$app/node"
  done_so_far+=("Node.js in $app/node")
  node="$(usable_node)" || die 'the Node.js from npm does not run here'
}

# A Node of version 20.3 or newer outside of the homes, which the sandbox hides: the machine's, else ours of an earlier run.
usable_node() {
  local path
  for path in "$(command -v node || true)" /usr/bin/node "$app/node/node_modules/node-linux-${node_arch:-}/bin/node"; do
    path="$(readlink -f "$path")" || continue
    case "$path" in "$app"/*) ;; /root/* | /home/* | /tmp/* | /run/*) continue ;; esac
    [ -x "$path" ] || continue
    "$path" -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 3) ? 0 : 1)' 2>/dev/null || continue
    echo "$path"
    return
  done
  return 1
}

# npm with the Node that was found, where that came from npm: the distribution's may be so old that it leaves out packages
# which want a newer Node. Install scripts are not run: npm 12 skips them anyway, and succeeds all the same.
run_npm() {
  local own="$app/node/node_modules/npm/bin/npm-cli.js"
  case "${node:-}" in "$app"/*) set -- "$node" "$own" "$@" ;; *) set -- npm "$@" ;; esac
  "$@" --cache "$scratch/npm" --ignore-scripts --no-audit --no-fund --loglevel=error
}

# npm_install FOLDER PACKAGE...
npm_install() { quietly "npm install ${*:2}" run_npm install --prefix "$@"; }

# Sets claude, the CLI that the release links to.
install_claude() {
  local wanted="$claude_version" installed folder
  installed="$(find "$app/cli" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' 2>/dev/null | sort -V | tail -n 1)" || true
  if [ -n "$asked_claude" ]; then
    wanted="$asked_claude"
    if [[ ! "$wanted" =~ ^[0-9] ]]; then
      wanted="$(run_npm view "@anthropic-ai/claude-code@$wanted" version 2>/dev/null)" || die 'npm cannot be asked for the version of the Claude CLI'
    fi
  elif [ -n "$installed" ] && [ "$(printf '%s\n' "$installed" "$wanted" | sort -V | tail -n 1)" = "$installed" ]; then
    wanted="$installed"
  fi
  folder="$app/cli/$wanted"
  claude="$folder/node_modules/@anthropic-ai/claude-code/bin/claude.exe"
  claude_wanted="$wanted"
  if [ -d "$folder" ] && claude_answers "$claude"; then return; fi
  step "installing the Claude CLI $wanted into $folder" || return 0
  rm -rf "$app/cli/.new" "$folder"
  mkdir -p "$app/cli/.new"
  npm_install "$app/cli/.new" "@anthropic-ai/claude-code@$wanted"
  # Without its install script the package is a stub that says so and exits with 1.
  (cd "$app/cli/.new/node_modules/@anthropic-ai/claude-code" && quietly "the Claude CLI's install script" "$node" install.cjs)
  mv "$app/cli/.new" "$folder"
  claude_answers "$claude" || die "\"claude --version\" does not answer as the user $user: $(tail -n 1 "$scratch/claude")"
  done_so_far+=("the Claude CLI in $folder")
}

claude_answers() { as_user timeout 60 "$1" --version >"$scratch/claude" 2>&1 && grep -qE '^[0-9]+\.[0-9]+\.[0-9]+' "$scratch/claude"; }

# Sets release: a folder with this code, built, and bin/ with the Node and the CLI it runs with; named by what is in it.
build_release() {
  local version hash
  version="$(sed -n 's/^ *"version": "\([^"]*\)".*/\1/p' "$source_dir/package.json" | head -n 1)"
  hash="$(cd "$source_dir" && { find "${sources[@]}" -type f -print0 | sort -z | xargs -0 sha256sum; echo "$user $home $node $claude"; } | sha256sum | cut -c1-12)"
  release="$app/releases/$version-$hash"
  if [ -d "$release" ]; then return; fi
  step "building claude-api $version in $release" || return 0
  local new="$app/releases/.new"
  rm -rf "$new"
  mkdir -p "$new/bin"
  (cd "$source_dir" && cp -R --no-preserve=mode,ownership "${sources[@]}" "$new/")
  chmod 755 "$new/install.sh"
  (cd "$new" && quietly 'npm ci' run_npm ci)
  (cd "$new" && quietly 'the build' "$node" node_modules/typescript/bin/tsc -p tsconfig.build.json)
  rm -rf "$new/node_modules"
  ln -s "$node" "$new/bin/node"
  ln -s "$claude" "$new/bin/claude"
  sed -i -e "s|^User=claude\$|User=$user|" -e "/^#/!s|/home/claude\b|$home|g" "$new/claude-api.service"
  chmod -R go-w "$new"
  mv "$new" "$release"
}

make_env() {
  if [ -e "$app/.env" ]; then return; fi
  if [ -f "$source_dir/.env" ]; then
    step "copying .env to $app/.env" || return 0
    install -m 0640 -o root -g "$group" "$source_dir/.env" "$app/.env"
  else
    step "making $app/.env with a new key" || return 0
    install -m 0640 -o root -g "$group" /dev/null "$app/.env.new"
    cat >"$app/.env.new" <<END
# The settings of claude-api. install.sh made this file and never changes it; README.md lists what may stand here.
# After a change: systemctl restart claude-api
CLAUDE_API_KEY=$(new_key)
PORT=$port
# ANTHROPIC_API_KEY=
# CLAUDE_CODE_OAUTH_TOKEN=
END
    mv "$app/.env.new" "$app/.env"
  fi
  done_so_far+=("$app/.env")
}

copy_login() {
  $copy_login || return 0
  if [ -e "$home/.claude/.credentials.json" ]; then
    warn "$home/.claude/.credentials.json is there already and stays as it is"
    return
  fi
  step "copying the login $login to $home/.claude" || return 0
  # Written as the user: whatever lies in its home, root follows no link there.
  # shellcheck disable=SC2016
  as_user sh -c 'umask 077 && mkdir -p "$HOME/.claude" && cat >"$HOME/.claude/.credentials.json"' <"$login" || die 'the login could not be copied'
}

# Puts the new release in the place of the old one, and the old one back when the new one does not answer.
switch_over() {
  local before
  before="$(readlink "$app/current" 2>/dev/null)" || true
  if [ "$before" = "$release" ] && cmp -s "$release/claude-api.service" "$unit" && systemctl is-enabled --quiet claude-api && systemctl is-active --quiet claude-api; then
    await_health || failed
    say 'nothing to change'
    say_how
    return
  fi
  step 'starting the service claude-api' || return 0
  activate "$release"
  if [ -z "$before" ]; then done_so_far+=('the service claude-api'); fi
  if ! await_health; then
    show_journal
    if [ -n "$before" ] && [ "$before" != "$release" ] && [ -d "$before" ]; then
      activate "$before"
      rm -rf "$release"
      await_health || failed
      die "the new version did not answer, and was removed: the old one runs again"
    fi
    failed
  fi
  remove_old
  say_how
}

# activate RELEASE: what takes effect is one symbolic link and the unit
activate() {
  ln -sfn "$1" "$app/current.new"
  mv -T "$app/current.new" "$app/current"
  install -m 0644 "$1/claude-api.service" "$unit"
  systemctl daemon-reload
  systemctl reset-failed claude-api 2>/dev/null || true
  systemctl enable --quiet claude-api
  systemctl restart claude-api || true
}

failed() {
  die 'the service is installed, but does not answer: mend what the journal says, then run: systemctl restart claude-api'
}

show_journal() {
  echo 'The last lines of the journal:' >&2
  journalctl -u claude-api -n 20 --no-pager -o cat >&2 || true
}

# True once the server answers with the key from .env and has found a CLI that runs; sets login_found. The key is read by
# Node itself and stands in no command line.
await_health() {
  local deadline=$((SECONDS + 30)) answer
  while [ "$SECONDS" -lt "$deadline" ]; do
    if answer="$(cd "$app" && current/bin/node --input-type=module -e "$ask_health" 2>/dev/null)"; then
      read -r url login_found <<<"$answer"
      return 0
    fi
    if systemctl is-failed --quiet claude-api || [ "$(systemctl show -p NRestarts --value claude-api)" -ge 3 ]; then return 1; fi
    sleep 0.5
  done
  return 1
}

# shellcheck disable=SC2016
ask_health='
  import { readFileSync } from "node:fs";
  const { parseEnv } = await import(process.cwd() + "/current/dist/dotenv.js");
  const settings = Object.fromEntries(parseEnv(readFileSync(".env", "utf8")).values);
  const host = { "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]" }[settings.HOST ?? ""] ?? settings.HOST;
  const url = `http://${host}:${settings.PORT || 8001}`;
  const response = await fetch(url + "/health", { headers: { Authorization: `Bearer ${settings.CLAUDE_API_KEY}` }, signal: AbortSignal.timeout(3000) });
  const health = await response.json();
  if (!response.ok || !health.claude_version) process.exit(1);
  console.log(url, health.login ?? "none");
'

remove_old() {
  local path
  for path in "$app"/releases/*; do [ "$path" = "$release" ] || rm -rf "$path"; done
  for path in "$app"/cli/*; do [ "$path" = "$app/cli/$claude_wanted" ] || rm -rf "$path"; done
  case "$node" in "$app"/*) ;; *) rm -rf "$app/node" ;; esac
}

say_how() {
  cat <<END

claude-api runs as the user $user and answers at $url

  the key         sudo grep CLAUDE_API_KEY $app/.env
  settings        $app/.env, then: sudo systemctl restart claude-api
  state and log   systemctl status claude-api; journalctl -u claude-api
  remove          sudo $app/current/install.sh --uninstall
END
  if [ "$login_found" != none ]; then
    echo "  Claude login    found: $login_found"
    return
  fi
  cat <<END

It has no Claude login yet. One of these, and it answers chats:

  an API key       ANTHROPIC_API_KEY=... in $app/.env, then: sudo systemctl restart claude-api
  a subscription   run "claude setup-token" anywhere, and what it prints as CLAUDE_CODE_OAUTH_TOKEN=... in $app/.env, then restart
  interactively    sudo -u $user -H $app/current/bin/claude
END
  if [ -n "$login" ]; then echo "  a copy           of $login: run install.sh again with --copy-login"; fi
}

# ---------------------------------------------------------------- remove

remove_service() {
  if is_our_unit; then
    if step 'stopping and removing the service claude-api'; then
      systemctl disable --now --quiet claude-api || true
      rm -f "$unit"
      systemctl daemon-reload
      systemctl reset-failed claude-api 2>/dev/null || true
    fi
  elif [ "$action" = uninstall ] && [ ! -e "$app/current" ] && [ ! -e "$app/releases" ] && [ ! -e "$app/cli" ] && [ ! -e "$app/node" ]; then
    say 'claude-api is not installed'
    return
  fi
  if step "removing the code in $app"; then
    rm -rf "$app/current" "$app/current.new" "$app/releases" "$app/cli" "$app/node"
  fi
  if [ "$action" = purge ]; then purge; else say_what_stays; fi
}

say_what_stays() {
  say "what stays: $app/.env, the dialogues in $state and $home/.claude, the login, the user $user, and packages that apt installed"
  say "install.sh --user $user goes on with them; install.sh --user $user --purge removes all but the packages"
}

purge() {
  if step "removing $app/.env and $state"; then
    rm -rf "$app" "$state" "$unit.d"
  fi
  if ! user_exists; then return; fi
  if ! is_our_user; then
    say "the user $user was not made by install.sh and stays, with $home and the dialogues and login in $home/.claude"
    return
  fi
  step "removing the user $user with $home, its login and dialogues" || return 0
  quietly userdel userdel "$user"
  rm -rf --one-file-system "$home"
}

main "$@"
exit
