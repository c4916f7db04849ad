# A controller with a fleet on the booted machine, and devices that join it. To be sourced instead of lib.sh.
# shellcheck shell=bash
# shellcheck source=packaging/tests/lib.sh
. packaging/tests/lib.sh

# world_start: a controller at https://127.0.0.1:8443 that follows a repo from the template.
world_start() {
    machine mkdir -p /srv/longshore
    machine systemd-run --quiet --unit=controller --property=WorkingDirectory=/srv/longshore \
        "$programs/longshore-controller" --public-listen 127.0.0.1:8443 --edge-listen 127.0.0.1:8444
    eventually 'the controller is ready' world longshore status
    world git config --global user.name Operator
    world git config --global user.email operator@longshore.test
    world longshore init shops 2>/dev/null
    world git init --quiet --bare -b main shops.git
    world git -C shops remote add origin ../shops.git
    world git -C shops push --quiet -u origin main
    world longshore fleets add shops --repo ./shops.git 2>/dev/null
} >/dev/null

# world COMMAND...: runs it beside the controller.
world() {
    local program=$1
    shift
    [[ $program != longshore ]] || program=$programs/longshore
    machine env --chdir=/srv/longshore "$program" "$@"
}

# new_token [OPTION...]: one that approves by itself, in $token, with the words that come before a name in $where. The
# command that it came in is $command, the one for joining by hand $by_hand.
new_token() {
    local words i
    (($# > 0)) || set -- --overlay groups/kiosk --device any
    command=$(world longshore tokens create --auto "$@" 2>"$scratch/by-hand")
    by_hand=$(sed -n 's/^where there is only the program, .*: \(longshore-agent .*\)/\1/p' "$scratch/by-hand")
    read -ra words <<<"$command"
    where=() token=${words[2]:-}
    for ((i = 1; i < ${#words[@]}; i++)); do
        case ${words[i]} in
        --server | --ca-fingerprint) where+=("${words[i]}" "${words[i + 1]}") ;;
        esac
    done
    [[ ${#where[@]} == 4 && $token == lst_* && -n $by_hand ]] || fail "no command to join with: $command"
}

# in_sync NAME: the device runs what the repo says, or else tells why not.
in_sync() {
    world longshore devices list | grep -qE "^$1 +active +yes +Applied " && return
    world longshore devices show "$1"
    return 1
}

applied() { eventually "$1 runs what the repo says" in_sync "$1"; }
