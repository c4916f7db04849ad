# What the tests of packages share. To be sourced by a test that runs in the repo's root.
# shellcheck shell=bash
set -Eeuo pipefail
trap 'echo "FAILED: ${BASH_SOURCE[0]}:$LINENO: $BASH_COMMAND" >&2' ERR
# shellcheck source=packaging/tests/machine.sh
. packaging/tests/machine.sh

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

# expect WHAT EXPECTED ACTUAL
expect() { [[ $2 == "$3" ]] || fail "$1: expected \`$2\`, found \`$3\`"; }

# expect_in WHAT PART WHOLE
expect_in() { [[ $3 == *"$2"* ]] || fail "$1: no \`$2\` in: $3"; }

# expect_not_in WHAT PART WHOLE
expect_not_in() { [[ $3 != *"$2"* ]] || fail "$1: \`$2\` in: $3"; }

# refuses WHAT WORDS COMMAND...: the command must fail, and say these words.
refuses() {
    local what=$1 words=$2 said
    shift 2
    if said=$("$@" 2>&1); then fail "$what: went through: $said"; fi
    expect_in "$what" "$words" "$said"
}

# eventually WHAT COMMAND...: the command succeeds within a minute.
eventually() {
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > deadline)); then
            "$@" || true
            fail "$what: not within a minute"
        fi
        sleep 0.1
    done
}

programs=$(realpath "${CARGO_TARGET_DIR:-target}")/debug
# What scripts/bootstrap made of packaging/tests/python/requirements.txt.
python_bin=$PWD/packaging/tests/python/.venv/bin
export python_bin PYTHONDONTWRITEBYTECODE=1
scratch=$(mktemp -d "${TMPDIR:-/tmp}/longshore-packaging.XXXXXX")
trap 'machine_stop; rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Makes both packages of the agent that was built last, unless that was done: $packages, $deb, $tarball.
make_packages() {
    packages=${LONGSHORE_TEST_PACKAGES:-$scratch/packages}
    if [[ ! -f $packages/SHA256SUMS ]]; then
        mkdir -p "$scratch/target/debug"
        strip -o "$scratch/target/debug/longshore-agent" "$programs/longshore-agent"
        CARGO_TARGET_DIR=$scratch/target scripts/package all --profile dev --no-build --fast --output "$packages" \
            >"$scratch/log" 2>&1 || fail "$(cat "$scratch/log")"
    fi
    deb=$(only "$packages"/*.deb)
    tarball=$(only "$packages"/*.tar.gz)
    # shellcheck disable=SC2034 # of use to who sources this
    readonly deb tarball
}

only() {
    [[ $# == 1 && -f $1 ]] || fail "there should be one of: $*"
    printf %s "$1"
}
