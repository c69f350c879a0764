# Shared by the scripts of this folder; sourced, never run.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"

say() { if [ -t 2 ]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "run as root: namespaces, mounts and cgroups need it"; }

# Where the daemon that hack/up starts keeps what dies with the boot; its pid is written there.
state=/run/slipway
# And what does not: images, and the files of pods that their containers write to.
root=/var/lib/slipway

start_daemon() {
    say "starting slipway serve (log: /var/log/slipway.log)"
    setsid slipway serve >>/var/log/slipway.log 2>&1 </dev/null &
    mkdir -p $state && echo $! >$state/slipway.pid
    for _ in $(seq 100); do slipway pods >/dev/null 2>&1 && return; sleep 0.1; done
    tail -20 /var/log/slipway.log >&2
    die "the daemon did not come up"
}

# install PACKAGE...: those that dpkg does not know yet, by one apt-get call.
install() {
    local missing=() p
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "needs ${missing[*]}: install them (this script knows apt-get only)"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || true
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The Rust tool chain that rust-toolchain.toml names.
need_rust() {
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    if ! command -v cargo >/dev/null; then
        install curl ca-certificates
        if apt-cache show rustup >/dev/null 2>&1; then
            install rustup
        else
            say "installing Rust by rustup"
            curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal >/dev/null
            PATH="$HOME/.cargo/bin:$PATH"
        fi
    fi
    cargo --version >/dev/null || die "cargo does not run: install Rust 1.95 or newer (https://rustup.rs)"
}

# Go 1.21 or newer: it brings the version that go.mod names by itself.
need_go() {
    [ -d /usr/local/go/bin ] && PATH="$PATH:/usr/local/go/bin"
    command -v go >/dev/null || install golang-go
    local v
    v=$(go env GOVERSION 2>/dev/null || true)
    case "$v" in
    go1.2[1-9]* | go1.[3-9][0-9]* | go[2-9]*) ;;
    *) die "needs Go 1.21 or newer to build crictl for the tests, found '${v:-none}': install it from https://go.dev/dl or backports" ;;
    esac
}
