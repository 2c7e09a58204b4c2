#!/usr/bin/env bash
# Installs claude-api as a systemd service on Debian 12/13 or Ubuntu 22.04/24.04; a second run updates it. See --help.
# shellcheck disable=SC2317 # what trap and quietly call is reached
[ -n "${BASH_VERSION:-}" ] || { echo 'install.sh: error: needs bash; try: sudo bash install.sh' >&2; exit 2; }
set -euo pipefail
umask 022

# Where "curl … | sudo bash" gets the code: the .tar.gz of a release. Not used when run from a copied folder.
source_url="${CLAUDE_API_SOURCE:-}"
# The SHA-256 it must have; without it the .sha256 beside it counts.
source_sum="${CLAUDE_API_SHA256:-}"
# The Claude CLI the tests run on; --claude asks for another. A newer one that is in use stays.
claude_version=2.1.331
# Taken from npm where the machine has no Node 20.3 or newer.
node_major=24

unit=/etc/systemd/system/claude-api.service
looser="$unit.d/10-sandbox.conf"
trial_unit=/run/systemd/system/claude-api-trial.service
state=/var/lib/claude-api
sources=(install.sh claude-api.service claude-api-newer-systemd.conf package.json README.md CHANGELOG.md LICENSE .env.example) # find_source: the code besides
node_arch="$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')"
claude_program=node_modules/@anthropic-ai/claude-code/bin/claude.exe
# In the comment field of the user, by which --purge knows that this script made it.
user_comment='claude-api service'

# What the options say
action=install    # or uninstall, purge
dry_run=false     # say what would be done, and do nothing
no_sandbox=false  # a new .env does without the sandbox
copy_login=false  # give the server the Claude login of root or of the user who runs sudo
user=''           # whom the server runs as; find_user fills it in
host=''           # of a new .env; check_settings: of the one there is
port=''           # likewise
asked_claude=''   # the version of the CLI, or latest
again=''          # main: this very command, for messages

# What is found, each by the function named
scratch=''        # main: a temporary folder, gone at the end
changed=false     # step: whether something was done
gone_back=false   # go_back: whether it was undone again
installed_user='' # find_user: of the unit that is there
group=''          # find_user: the user's
home=''           # find_user: the user's
app=''            # find_user: the folder of code and .env
own_node=''       # find_user: where the Node from npm is, if it is there
own_npm=''        # find_user: and its npm
before=''         # find_user: the release that ran until now
source_dir=''     # find_source: this version's code
login=''          # find_login: a credentials file that --copy-login can copy
problems=()       # check: what keeps us from starting, a sentence each
node=node         # find_node: the Node that the service runs on
claude=''         # choose_claude: the CLI that the service runs
release=''        # build_release: a folder with this code, built, named by what is in it
url=''            # await_health: where the server answers
sandbox_found=''  # await_health: whether it has the sandbox, on or off
login_found=''    # await_health: the login that it found, or none

usage() {
  cat <<END
usage: sudo ./install.sh [options]

Installs claude-api, or updates it to this version, and starts it. Key, .env, login and dialogues are kept.

  --host ADDRESS    where a new .env listens (127.0.0.1; 0.0.0.0 is every address of this machine)
  --port N          the port of a new .env (8001)
  --user NAME       the user the server runs as, made if need be (claude)
  --no-sandbox      where there is no sandbox: Claude has five file tools then, and no wall but its own rules between end users
  --copy-login      give the server the Claude login of the user who runs sudo, or of root
  --claude VERSION  another version of the Claude CLI, such as latest ($claude_version or newer)
  --dry-run         say what would be done, and do nothing; needs no root
  --uninstall       remove the service and its code; .env, login and dialogues stay
  --purge           remove these too, and the user
  --help
END
}

say() { echo "==> $*"; }
warn() { echo "install.sh: warning: $*" >&2; }
die() { echo "install.sh: error: $*" >&2; exit 1; }
misuse() { echo "install.sh: error: $*; try --help" >&2; exit 2; }

# step WHAT: says what is done now; false in a dry run
step() {
  if $dry_run; then
    echo "would: $*"
    return 1
  fi
  changed=true
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
  parse_options "$@"
  again="sudo ./install.sh${*:+ $*}"
  if [ ! -f "${BASH_SOURCE[0]:-}" ]; then again="… | sudo bash -s --${*:+ $*}"; fi
  if ! $dry_run; then
    [ "$(id -u)" -eq 0 ] || die "must run as root, and changed nothing; try: $again"
    exec 9>/run/claude-api-install.lock || die 'cannot write /run'
    flock -n 9 || die 'another install.sh is running'
  fi
  # Not /tmp, which may be memory: npm keeps hundreds of megabytes there for a while.
  scratch="$(mktemp -d /var/tmp/claude-api-install.XXXXXX)"
  find_user
  trap clean_up EXIT
  trap 'exit 130' INT TERM HUP
  [ "${installed_user:-$user}" = "$user" ] || die "the service is installed for the user $installed_user, not for $user; to remove it: sudo ./install.sh --uninstall"
  if $dry_run && [ -d "$home" ] && [ ! -x "$home" ]; then warn "only root sees what is in $home already: $again"; fi
  if [ "$action" = install ]; then install_service; else remove_service; fi
}

parse_options() {
  while [ $# -gt 0 ]; do
    if [[ "$1" == --*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
    case "$1" in
      --user | --host | --port | --claude) [ -n "${2:-}" ] || misuse "$1 needs a value" ;;&
      --user) user="$2" ;;&
      --host) host="$2" ;;&
      --port) port="$2" ;;&
      --claude) asked_claude="$2" ;;&
      --user | --host | --port | --claude) shift ;;
      --no-sandbox) no_sandbox=true ;;
      --copy-login) copy_login=true ;;
      --dry-run) dry_run=true ;;
      --uninstall) [ "$action" = purge ] || action=uninstall ;;
      --purge) action=purge ;;
      --help) usage; exit 0 ;;
      *) misuse "unknown option $1" ;;
    esac
    shift
  done
  [[ "$port" =~ ^([1-9][0-9]{3,4})?$ && "${port:-8001}" -ge 1024 && "${port:-8001}" -le 65535 ]] || misuse '--port: expected 1024 to 65535'
  [[ "$host" =~ ^[0-9A-Za-z.:-]*$ ]] || misuse '--host: expected an address such as 0.0.0.0'
  [[ "$user" =~ ^([a-z_][a-z0-9_-]{0,31})?$ ]] || misuse '--user: expected a name such as claude'
  [[ "$asked_claude" =~ ^(latest|stable|[0-9]+\.[0-9]+\.[0-9]+)?$ ]] || misuse '--claude: expected a version such as 2.1.331, or latest'
}

# After a failure or an interruption the version of before runs again, and what stays is said.
clean_up() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  if ! $dry_run; then
    if [ "$status" -ne 0 ] && [ "$action" = install ] && [ -L "$app/previous" ]; then go_back; fi
    rm -rf "$app/releases/.new" "$app/cli/.new" "$app/node.new" "$app/current.new" "$app/.env.new" "$trial_unit" "$trial_unit.d"
    if [ "$status" -ne 0 ]; then say_what_is_left; fi
  fi
  rm -rf "$scratch"
  exit "$status"
}

say_what_is_left() {
  if ! $changed; then
    echo 'Nothing was changed.' >&2
  elif ! $gone_back; then
    echo "The steps above were completed and are kept. To go on: $again. To remove all of it, add --purge." >&2
  fi
  if [ -n "$before" ] && [ "$(readlink "$app/current")" = "$before" ] && systemctl is-active --quiet claude-api; then
    echo 'The service runs as before.' >&2
  fi
}

# The user of the option, else of the installed service, else claude. Code that root runs must not lie in a home that is
# its user's own; the home of a user that this script made is root's.
find_user() {
  if is_our_unit; then installed_user="$(sed -n 's/^User=//p' "$unit")"; fi
  user="${user:-${installed_user:-claude}}"
  home="$(getent passwd "$user" | cut -d: -f6)" || true
  home="$(readlink -m "${home:-/home/$user}")"
  group="$(id -gn "$user" 2>/dev/null)" || group="$user"
  if user_exists && ! is_our_user; then app=/opt/claude-api; else app="$home/claude-api"; fi
  own_node="$app/node/node_modules/node-linux-$node_arch/bin/node"
  own_npm="$app/node/node_modules/npm/bin/npm-cli.js"
  before="$(readlink "$app/previous" || readlink "$app/current")" || true
}

user_exists() { getent passwd "$user" >/dev/null; }
is_our_user() { [ "$(getent passwd "$user" | cut -d: -f5)" = "$user_comment" ]; }
# What lies in our folder and is not ours, or the folder itself when root does not own it
strangers() {
  if [ -L "$app" ] || { [ -e "$app" ] && [ "$(stat -c %u "$app")" -ne 0 ]; }; then
    echo "$app"
  elif [ -d "$app" ]; then
    find "$app" -mindepth 1 -maxdepth 1 -regextype egrep ! -regex '.*/(\.env|releases|cli|node|current|previous)(\.new)?'
  fi
}
is_our_unit() { head -n 1 "$unit" 2>/dev/null | grep -q 'install\.sh'; }
as_user() { runuser -u "$user" -- env -i HOME="$home" USER="$user" LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin "$@"; }

# ---------------------------------------------------------------- install

install_service() {
  find_source
  find_login
  check
  make_user
  install_packages
  load_profile
  find_node
  install_claude
  build_release
  make_env
  check_settings
  try_sandbox
  copy_login
  switch_over
}

# The folder this script lies in, else a download of source_url
find_source() {
  source_dir="$(cd "$(dirname "${BASH_SOURCE[0]:-}")" 2>/dev/null && pwd -P)" || source_dir=''
  if [ -f "${BASH_SOURCE[0]:-}" ] && is_source; then return; fi
  [ -n "$source_url" ] || die 'the code is not beside this script: run it from the copied folder, or set CLAUDE_API_SOURCE to the URL of its .tar.gz'
  source_dir="$scratch/source"
  mkdir "$source_dir"
  say "downloading $source_url"
  quietly 'the download' download
  is_source || die "what $source_url holds is not claude-api"
}

# Whether source_dir is this repository, which is built here, or a release, which is built already
is_source() {
  if [ -f "$source_dir/src/main.ts" ]; then
    sources+=(src package-lock.json .npmrc tsconfig.json tsconfig.build.json)
  elif [ -f "$source_dir/dist/main.js" ]; then
    sources+=(dist)
  else
    return 1
  fi
}

download() {
  fetch "$source_url" "$scratch/source.tar.gz" || return
  if [ -z "$source_sum" ]; then
    fetch "$source_url.sha256" "$scratch/sum" || { echo "there is no $source_url.sha256; say what the sum must be: CLAUDE_API_SHA256"; return 1; }
    source_sum="$(cut -d ' ' -f 1 "$scratch/sum")"
  fi
  echo "$source_sum  $scratch/source.tar.gz" | sha256sum --check --status || { echo "its SHA-256 is not $source_sum"; return 1; }
  tar -xzf "$scratch/source.tar.gz" --no-same-owner --strip-components=1 -C "$source_dir"
}

# fetch URL FILE
fetch() { curl -fsSL "$1" -o "$2" || wget -qO "$2" "$1"; }

find_login() {
  local name file
  for name in root "${SUDO_USER:-root}"; do
    file="$(getent passwd "$name" | cut -d: -f6)/.claude/.credentials.json" || continue
    if [ "$name" != "$user" ] && [ -f "$file" ]; then login="$file"; fi
  done
}

# Looks at everything that could stop us, changes nothing, and says all of it at once.
check() {
  check_machine
  check_user
  check_place
  check_disk
  check_sandbox
  if $copy_login && [ -z "$login" ]; then problems+=('--copy-login: neither root nor the user who runs sudo has a Claude login'); fi
  [ ${#problems[@]} -eq 0 ] && return
  printf 'install.sh: error: %s\n' "${problems[@]}" >&2
  exit 1
}

check_machine() {
  [[ "$(uname -s)-$node_arch" =~ ^Linux-(x64|arm64)$ ]] || problems+=("this is $(uname -s) on $(uname -m): expected Linux on x86_64 or aarch64")
  [ -d /run/systemd/system ] || problems+=('systemd is not running on this machine; in a container use the Dockerfile')
  command -v npm >/dev/null || command -v apt-get >/dev/null || problems+=('neither npm nor apt-get is here: install Node.js 20 or newer with npm')
}

check_user() {
  if user_exists; then
    if [ "$(id -u "$user")" -eq 0 ]; then problems+=("the server must not run as $user, which is root: give another --user"); fi
    [[ "$home" =~ ^/[A-Za-z0-9._/-]+[A-Za-z0-9._-]$ && -d "$home" ]] || problems+=("the user $user has no usable home folder: give another --user")
  elif [ -e "$home" ]; then
    problems+=("$home is there, but no user $user: move it away, or create the user")
  fi
}

check_place() {
  local name
  for name in "${sources[@]}"; do [ -e "$source_dir/$name" ] || problems+=("the copied folder is incomplete: $name is missing"); done
  if [ -e "$unit" ] && ! is_our_unit; then
    problems+=("there is another claude-api.service: remove it first (systemctl disable --now claude-api; rm $unit)")
  fi
  if [ -n "$(strangers)" ]; then
    problems+=("$app is where the server goes, but something else is there: move it away first")
  fi
  if [ ! -f "$app/.env" ] && [ ! -f "$source_dir/.env" ]; then
    if is_taken "${port:-8001}"; then problems+=("port ${port:-8001} is taken by another program: stop it, or choose another --port"); fi
  elif [ -f "$app/.env" ] && [ -f "$source_dir/.env" ] && ! cmp -s "$app/.env" "$source_dir/.env"; then
    warn "$source_dir/.env does not count: $app/.env is there already"
  fi
}

# Only the CLI is large: its package and what npm keeps of it meanwhile.
check_disk() {
  local free_kb
  choose_claude
  if [ -x "$claude" ]; then return; fi
  free_kb="$(df -Pk "$(if [ -d "$home" ]; then echo "$home"; else echo /home; fi)" | awk 'NR == 2 { print $4 }')"
  [ "$free_kb" -ge 1500000 ] || problems+=("$((free_kb / 1024)) MB are free on the disk of $home: at least 1500 MB are needed")
}

# What no package brings: user namespaces, and a /proc that may be mounted in one.
check_sandbox() {
  local as_nobody=() said
  if ! wants_sandbox; then return; fi
  if $no_sandbox; then problems+=("--no-sandbox counts for a new .env only: set CLAUDE_SANDBOX=off in $(env_file)"); fi
  command -v bwrap >/dev/null || command -v apt-get >/dev/null || problems+=("the sandbox needs bubblewrap, and there is no apt-get to install it; $(without_sandbox)")
  if is_restricted; then return; fi
  if [ "$(id -u)" -eq 0 ]; then as_nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups); fi
  said="$("${as_nobody[@]}" unshare --user --map-root-user --mount --pid --fork --mount-proc true 2>&1)" && return
  case "$said" in
    *'unshare failed'*) problems+=("there is no sandbox, since user namespaces are off ($said): the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone must be above 0; $(without_sandbox)") ;;
    *) problems+=("there is no sandbox, since parts of /proc are masked ($said), as a container's host does it; $(without_sandbox)") ;;
  esac
}

# The settings that will count
env_file() { if [ ! -f "$app/.env" ] && [ -f "$source_dir/.env" ]; then echo "$source_dir/.env"; else echo "$app/.env"; fi; }
wants_sandbox() {
  if [ ! -f "$(env_file)" ]; then
    if $no_sandbox; then return 1; fi
  elif grep -qsE "^[[:space:]]*(export[[:space:]]+)?CLAUDE_SANDBOX[[:space:]]*=[[:space:]]*[\"']?off" "$(env_file)"; then
    return 1
  fi
}
without_sandbox() {
  local how="$again --no-sandbox"
  if [ -f "$(env_file)" ]; then how="CLAUDE_SANDBOX=off in $(env_file)"; fi
  echo "to do without, with five file tools and no wall but Claude's own rules between end users: $how"
}
# Whether AppArmor lets only programs with a profile of their own make user namespaces, as on Ubuntu from 24.04 on
is_restricted() { grep -qs 1 /proc/sys/kernel/apparmor_restrict_unprivileged_userns; }

# is_taken PORT: whether another program answers there
is_taken() { ! systemctl is-active --quiet claude-api 2>/dev/null && (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Its home belongs to root and is sticky: the user may write there, but not move the code away and put its own in its place.
make_user() {
  if ! user_exists; then
    step "make the user $user with home $home" || return 0
    quietly useradd useradd --system --user-group --create-home --home-dir "$home" --shell /usr/sbin/nologin --comment "$user_comment" "$user"
  fi
  if $dry_run; then return; fi
  if is_our_user; then
    chown "root:$group" "$home"
    chmod 1770 "$home"
  fi
  [ -d "$app" ] || install -d -m 0755 "$app"
}

install_packages() {
  local packages=()
  if ! has_npm; then packages+=(npm ca-certificates); fi
  if wants_sandbox; then
    command -v bwrap >/dev/null || packages+=(bubblewrap)
    if is_restricted && [ -z "$(profile)" ]; then packages+=(apparmor-profiles); fi
  fi
  if [ ${#packages[@]} -eq 0 ]; then return; fi
  step "install ${packages[*]} from the distribution (this takes a minute)" || return 0
  export DEBIAN_FRONTEND=noninteractive
  # On a fresh machine the first upgrade may hold the locks; for update there is no option to wait.
  local deadline=$((SECONDS + 300))
  until apt-get update >"$scratch/output" 2>&1 || [ "$SECONDS" -ge "$deadline" ]; do sleep 5; done
  quietly 'apt-get install' apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "${packages[@]}"
}

has_npm() { command -v npm >/dev/null || [ -f "$own_npm" ]; }
profile() { find /etc/apparmor.d /usr/share/apparmor/extra-profiles -maxdepth 1 -name bwrap-userns-restrict 2>/dev/null | head -n 1; }

# The distribution's own for bubblewrap: it may make user namespaces, and what runs in them has no rights of root's.
load_profile() {
  if ! wants_sandbox || ! is_restricted || grep -qs '^bwrap ' /sys/kernel/security/apparmor/profiles; then return; fi
  step "load AppArmor's profile bwrap-userns-restrict" || return 0
  [ -n "$(profile)" ] || die "the package apparmor-profiles is too old to have it: sudo apt-get upgrade, then $again"
  [ -e /etc/apparmor.d/bwrap-userns-restrict ] || install -m 0644 "$(profile)" /etc/apparmor.d/
  quietly apparmor_parser apparmor_parser -r /etc/apparmor.d/bwrap-userns-restrict
}

# A Node that the service user can run
find_node() {
  # Only in a dry run, which cannot know what the distribution's npm brings along.
  has_npm || return 0
  if use_node; then return; fi
  step "install Node.js $node_major into $app/node" || return 0
  rm -rf "$app/node.new"
  npm_install "$app/node.new" "node-linux-$node_arch@$node_major" npm@11
  rm -rf "$app/node"
  mv "$app/node.new" "$app/node"
  use_node || die 'the Node.js from npm does not run on this machine'
}

# Takes a Node of version 20.3 or newer outside of the homes, which the sandbox hides: the machine's, else ours of an earlier run.
use_node() {
  local path least
  for path in "$(command -v node || true)" /usr/bin/node "$own_node"; do
    path="$(readlink -f "$path")" || continue
    least=20.3
    case "$path" in "$app"/*) least="$node_major.0" ;; /root/* | /home/* | /tmp/* | /run/*) continue ;; esac
    printf '%s\n' "v$least" "$("$path" --version 2>/dev/null)" | sort -VC || continue
    node="$path"
    return
  done
  return 1
}

# Our own npm, where Node came from npm: the distribution's may be so old that it leaves out packages
# which want a newer Node. Install scripts are not run: npm 12 skips them anyway, and succeeds all the same.
run_npm() {
  if [ -f "$own_npm" ]; then set -- "$own_node" "$own_npm" "$@"; else set -- npm "$@"; fi
  "$@" --cache "$scratch/npm" --ignore-scripts --no-audit --no-fund --loglevel=error
}

# npm_install FOLDER PACKAGE...
npm_install() { quietly "npm install ${*:2}" run_npm install --prefix "$@"; }

# The one asked for, else this script's or the one in use, if that is newer
choose_claude() {
  local used
  used="$(readlink "$app/current/bin/claude" 2>/dev/null | sed -n 's|.*/cli/\([^/]*\)/.*|\1|p')" || true
  claude_version="${asked_claude:-$(printf '%s\n' "$claude_version" "${used:-0}" | sort -V | tail -n 1)}"
  claude="$app/cli/$claude_version/$claude_program"
}

install_claude() {
  local new="$app/cli/.new"
  if [[ ! "$claude_version" =~ ^[0-9] ]]; then
    asked_claude="$(run_npm view "@anthropic-ai/claude-code@$claude_version" version 2>/dev/null)" || die 'npm could not tell the version of the Claude CLI'
    choose_claude
  fi
  if [ -x "$claude" ] && { $dry_run || claude_answers "$claude"; }; then return; fi
  step "install the Claude CLI $claude_version into $app/cli" || return 0
  rm -rf "$new"
  npm_install "$new" "@anthropic-ai/claude-code@$claude_version"
  # Without its install script the package is a stub that says so and exits with 1.
  (cd "$new/node_modules/@anthropic-ai/claude-code" && quietly "the Claude CLI's install script" "$node" install.cjs)
  # Older npm brings the one for another C library along, as large again.
  rm -rf "$new"/node_modules/@anthropic-ai/claude-code-*-musl
  claude_answers "$new/$claude_program" || die "\"claude --version\" does not answer as the user $user: $(tail -n 1 "$scratch/claude")"
  rm -rf "$app/cli/$claude_version"
  mv "$new" "$app/cli/$claude_version"
}

claude_answers() { as_user timeout 60 "$1" --version >"$scratch/claude" 2>&1 && grep -qE '^[0-9]+\.[0-9]+\.[0-9]+' "$scratch/claude"; }

# In its bin/ are links to the Node and the CLI it runs with, and its unit.
build_release() {
  local version hash
  version="$(sed -n 's/^ *"version": "\([^"]*\)".*/\1/p' "$source_dir/package.json" | head -n 1)"
  hash="$(cd "$source_dir" && { find "${sources[@]}" -type f -print0 | sort -z | xargs -0 sha256sum; echo "$user $home $node $claude"; } | sha256sum | cut -c1-12)"
  release="$app/releases/$version-$hash"
  if [ -d "$release" ] && (cd "$release" && sha256sum --check --status sums); then return; fi
  step "build claude-api $version in $release" || return 0
  local new="$app/releases/.new"
  rm -rf "$new"
  mkdir -p "$new/bin"
  (cd "$source_dir" && cp -R --no-preserve=mode,ownership "${sources[@]}" "$new/")
  chmod 755 "$new/install.sh"
  if [ -d "$new/src" ]; then
    (cd "$new" && quietly 'npm ci' run_npm ci)
    (cd "$new" && quietly 'the build' "$node" node_modules/typescript/bin/tsc -p tsconfig.build.json)
    rm -rf "$new/node_modules"
  fi
  ln -s "$node" "$new/bin/node"
  ln -s "$claude" "$new/bin/claude"
  sed -e "s|^User=claude\$|User=$user|" -e "/^#/!s|/home/claude/claude-api|$app|g" -e "/^#/!s|/home/claude\b|$home|g" "$new/claude-api.service" >"$new/bin/claude-api.service"
  chmod -R go-w "$new"
  (cd "$new" && find . -type f ! -name sums -exec sha256sum {} + >"$scratch/sums" && mv "$scratch/sums" sums)
  rm -rf "$release"
  mv "$new" "$release"
}

make_env() {
  if [ ! -e "$app/.env" ]; then
    if [ -f "$source_dir/.env" ]; then
      step "copy .env to $app/.env" || return 0
      install -m 0600 "$source_dir/.env" "$app/.env.new"
    else
      step "make $app/.env with a new key" || return 0
      install -m 0600 /dev/stdin "$app/.env.new" <<END
# The settings of claude-api. install.sh made this file and never changes it; README.md lists what may stand here.
# After a change: systemctl restart claude-api
CLAUDE_API_KEY=$(od -An -N32 -v -tx1 /dev/urandom | tr -d ' \n')
HOST=${host:-127.0.0.1}
PORT=${port:-8001}
# required: each end user in a sandbox, or the server does not start; off: five file tools, and no wall but Claude's own rules
CLAUDE_SANDBOX=$(if $no_sandbox; then echo off; else echo required; fi)
# ANTHROPIC_API_KEY=
# CLAUDE_CODE_OAUTH_TOKEN=
END
    fi
    mv "$app/.env.new" "$app/.env"
  fi
  if $dry_run; then return; fi
  chown "root:$group" "$app/.env"
  chmod 0640 "$app/.env"
}

# Before anything takes effect, by the new version's own rules
check_settings() {
  local settings at_host at_port
  if $dry_run; then return; fi
  settings="$(ask settings)" || die "the server would not start with $app/.env:"$'\n'"$(cat "$scratch/asked")"
  sed 's/^/install.sh: /' "$scratch/asked" >&2
  read -r at_host at_port <<<"$settings"
  [ "${host:-$at_host}" = "$at_host" ] || die "--host counts for a new .env only: set HOST=$host in $app/.env"
  [ "${port:-$at_port}" = "$at_port" ] || die "--port counts for a new .env only: set PORT=$port in $app/.env"
  if is_taken "$at_port"; then die "port $at_port is taken by another program: stop it, or set another PORT in $app/.env"; fi
  host="$at_host" port="$at_port"
}

# Before anything takes effect: the server's own trial, as the unit and what "systemctl edit" added to it will have it. By it
# newer systemd shows whether it needs the looser lines.
try_sandbox() {
  local lines="$release/bin/10-sandbox.conf"
  if $dry_run || ! wants_sandbox; then return; fi
  say 'trying the sandbox'
  if trial; then rm -f "$lines"; return; fi
  if trial "$release/claude-api-newer-systemd.conf"; then cp -u "$release/claude-api-newer-systemd.conf" "$lines"; return; fi
  die "there is no sandbox: $(cat "$scratch/trial")"$'\n'"docs/operations.md says what to do about it; $(without_sandbox)"
}

# trial [LINES]: whether the sandbox works in a unit like ours, with these lines besides
trial() {
  local works=true
  rm -rf "$trial_unit.d"
  mkdir "$trial_unit.d"
  sed "s|$app/current|$release|g" "$release/bin/claude-api.service" >"$trial_unit"
  find "$unit.d" -name '*.conf' ! -path "$looser" -exec cp {} "$trial_unit.d/" \; 2>/dev/null || true
  if [ $# -gt 0 ]; then cp "$1" "$trial_unit.d/10-sandbox.conf"; fi
  cat >"$trial_unit.d/zz-trial.conf" <<END
[Unit]
CollectMode=inactive-or-failed
[Service]
Type=oneshot
ExecStart=
ExecStart=$release/bin/node $release/dist/ask.js sandbox
StateDirectory=
RuntimeDirectory=
Restart=no
TimeoutStartSec=200
StandardOutput=null
StandardError=truncate:$scratch/trial
END
  systemctl daemon-reload
  echo 'it took more than 200 s' >"$scratch/trial"
  systemctl start claude-api-trial 2>/dev/null || works=false
  rm -rf "$trial_unit" "$trial_unit.d"
  $works
}

# ask settings|health: what src/ask.ts of the new version says, or of the one in use while there is no new one. It runs as
# the service user, and stdin tells it what "systemctl edit" added to the environment of the service.
ask() {
  local from="$release" environ
  if [ ! -d "$from" ]; then from="$app/current"; fi
  environ="/proc/$(systemctl show -p MainPID --value claude-api)/environ"
  if [ ! -e "$environ" ]; then environ=/dev/null; fi
  (cd "$app" && as_user timeout 30 "$from/bin/node" "$from/dist/ask.js" "$1" - <"$environ" 2>"$scratch/asked")
}

copy_login() {
  $copy_login || return 0
  if [ -e "$home/.claude/.credentials.json" ]; then
    warn "$home/.claude/.credentials.json is there already and stays as it is"
    return
  fi
  step "copy the login $login to $home/.claude" || return 0
  # Written as the user: whatever lies in its home, root follows no link there.
  # shellcheck disable=SC2016
  as_user sh -c 'umask 077 && mkdir -p "$HOME/.claude" && cat >"$HOME/.claude/.credentials.json"' <"$login" || die 'the login could not be copied'
}

# Puts the new release in the place of the old one, and the old one back when the new one does not answer. "previous" is
# there meanwhile: whatever ends this script, the next one knows what ran before.
switch_over() {
  local does_not_answer='the service is installed, but does not answer: fix what the lines above say, then: sudo systemctl restart claude-api'
  if [ "$(readlink "$app/current")" = "$release" ] && [ ! -L "$app/previous" ] && cmp -s <(unit_of "$release/bin/claude-api.service" "$release/bin/10-sandbox.conf") <(unit_of "$unit" "$looser") &&
    systemctl is-enabled --quiet claude-api && systemctl is-active --quiet claude-api; then
    say 'nothing to change'
    if $dry_run; then return; fi
    await_health || die "$does_not_answer"
    say_how
    return
  fi
  step 'start the service claude-api' || return 0
  # 0.1.0 had no ask.js.
  if [ -d "$before" ] && [ ! -e "$before/dist/ask.js" ]; then warn 'dialogues of 0.1.0 are not carried over: they start anew'; fi
  if [ -n "$before" ] && [ "$before" != "$release" ] && [ -d "$before" ]; then ln -sfn "$before" "$app/previous"; fi
  activate "$release"
  if ! await_health; then
    [ -L "$app/previous" ] || die "$does_not_answer"
    go_back
    die 'the new version did not answer, and was removed: the old one runs again'
  fi
  rm -f "$app/previous"
  remove_old
  say_how
}

# unit_of UNIT LINES: all of the unit
unit_of() { cat "$@" 2>/dev/null || true; }

# Back to the version that ran before; the other one is removed, with a CLI that only it used.
go_back() {
  say 'going back to the previous version'
  activate "$(readlink "$app/previous")"
  gone_back=true
  await_health || warn 'it does not answer either'
  rm -f "$app/previous"
  remove_old
}

# activate RELEASE: what takes effect is one symbolic link and the unit
activate() {
  ln -sfn "$1" "$app/current.new"
  mv -T "$app/current.new" "$app/current"
  install -m 0644 "$1/bin/claude-api.service" "$unit"
  if [ -e "$1/bin/10-sandbox.conf" ]; then install -D -m 0644 "$1/bin/10-sandbox.conf" "$looser"; else rm -f "$looser"; fi
  systemctl daemon-reload
  systemctl reset-failed claude-api 2>/dev/null || true
  systemctl enable --quiet claude-api
  systemctl restart claude-api || true
}

# True once the server answers with its key and has found a CLI that runs; else says why not. Its trial may take two minutes.
await_health() {
  local deadline=$((SECONDS + 150)) answer
  while [ "$SECONDS" -lt "$deadline" ]; do
    if answer="$(ask health)"; then
      read -r url sandbox_found login_found <<<"$answer"
      return
    fi
    if systemctl is-failed --quiet claude-api || [ "$(systemctl show -p NRestarts --value claude-api)" -ge 3 ]; then break; fi
    sleep 0.5
  done
  cat "$scratch/asked" - <(journalctl -u claude-api -n 20 --no-pager -o cat) <<<'The last lines of the journal:' >&2
  return 1
}

# Keeps what "current" uses.
remove_old() {
  local path used
  used="$(readlink "$app/current")/ $(readlink "$app/current/bin/claude") $(readlink "$app/current/bin/node")"
  for path in "$app"/releases/* "$app"/cli/* "$app/node"; do [[ "$used" == *"$path/"* ]] || rm -rf "$path"; done
}

say_how() {
  cat <<END

claude-api runs as the user $user and answers at $url

  listens on      $host, port $port
  the key         sudo grep CLAUDE_API_KEY $app/.env
  settings        $app/.env, then: sudo systemctl restart claude-api
  the sandbox     $sandbox_found$(if [ "$sandbox_found" = off ]; then echo ": Claude has five file tools, and no wall but its own rules between end users"; fi)
  state and log   systemctl status claude-api; journalctl -u claude-api
  remove          sudo $app/current/install.sh --uninstall
END
  if [ "$login_found" = none ]; then say_how_to_log_in; else echo "  Claude login    found: $login_found"; fi
  # The key goes to curl by a file, and so stands neither in a command line nor in the shell's history.
  cat <<END

Try it:

  curl $url/api/v1/chat -H @<(sudo sed -n 's/^CLAUDE_API_KEY=/Authorization: Bearer /p' $app/.env | tr -d \'\") \\
    -H 'Content-Type: application/json' -d '{"prompt": "Hello", "user_id": 1}'
END
}

say_how_to_log_in() {
  cat <<END

It has no Claude login yet. Add one of these and it will answer chats:

  an API key      ANTHROPIC_API_KEY=... in $app/.env, then: sudo systemctl restart claude-api
  a subscription  run "claude setup-token" anywhere, and put its output into CLAUDE_CODE_OAUTH_TOKEN=... in $app/.env, then restart
  interactively   sudo -u $user -H $app/current/bin/claude
END
  if [ -n "$login" ]; then echo "  a copy          of $login: sudo ./install.sh --copy-login"; fi
}

# ---------------------------------------------------------------- remove

remove_service() {
  local has_code=''
  # A folder of that name that is somebody else's is left alone.
  if is_our_unit || is_our_user || [ -z "$(strangers)" ]; then has_code="$(find "$app" -mindepth 1 ! -name .env -print -quit 2>/dev/null)" || true; fi
  if ! is_our_unit && [ -z "$has_code" ] && { [ "$action" = uninstall ] || { ! is_our_user && [ ! -e "$app/.env" ]; }; }; then
    say 'claude-api is not installed'
    return
  fi
  if is_our_unit && step 'stop and remove the service claude-api'; then
    systemctl disable --now --quiet claude-api || true
    rm -f "$unit" "$looser"
    rmdir "$unit.d" 2>/dev/null || true
    systemctl daemon-reload
    systemctl reset-failed claude-api 2>/dev/null || true
  fi
  if [ -n "$has_code" ] && step "remove the code in $app"; then
    rm -rf "$app/current" "$app/current.new" "$app/previous" "$app/releases" "$app/cli" "$app/node"
  fi
  if [ "$action" = purge ]; then purge; return; fi
  say "what stays: $app/.env, the dialogues in $state, the login in $home/.claude, the user $user, packages that apt installed, and AppArmor's profile for bubblewrap"
  say "install.sh --user $user goes on with them; install.sh --user $user --purge removes all but the packages"
}

purge() {
  if step "remove $app, and the dialogues in $state"; then rm -rf "$app" "$state" "$unit.d"; fi
  if ! user_exists; then return; fi
  if ! is_our_user; then
    say "the user $user was not made by install.sh and stays, with $home and the login in $home/.claude"
    return
  fi
  step "remove the user $user with $home and its login" || return 0
  # A user who has a process left, of an interactive login say, cannot be removed.
  for _ in {1..20}; do
    [ -n "$(find /proc -maxdepth 1 -user "$user" -print -quit 2>/dev/null)" ] || break
    as_user bash -c 'kill -KILL -1' || true
    sleep 0.25
  done
  quietly userdel userdel "$user"
  rm -rf --one-file-system "$home"
}

main "$@"
exit
