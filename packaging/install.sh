#!/bin/sh
# Installs the Longshore agent from a file on this machine. It asks nothing, needs no network, and changes nothing
# when everything is in place already.
set -eu

usage() {
    cat <<'USAGE'
Installs the Longshore agent from a file on this machine, as root. It asks nothing and needs no network; a second
run with the same options changes nothing.

  install.sh [--from FILE] [--sha256 DIGEST] [SETTINGS] [--platform PLATFORM] [--no-start]
  install.sh --uninstall [--purge]

What to install:
  --from FILE              a .deb or a .tar.gz [default: the one beside this script]
  --sha256 DIGEST          what its SHA-256 must be [default: what the file SHA256SUMS beside it says]

Where the device belongs; `longshore tokens create` prints these:
  --server URL             the controller's public address
  --ca-fingerprint DIGEST  the SHA-256 of the controller's root certificate
  --token-file FILE        the provisioning token, `-` for standard input. The agent removes its copy once the
                           device is enrolled
  --name NAME              the name to ask for [default: the host's name]
  --setting 'KEY = VALUE'  any other line of agent.toml; may be repeated

What it runs its workloads with:
  --platform generic       the runtime that --setting says, as a user without privileges [default]
  --platform podman        containers, with Podman; runs as root
  --platform microshift    MicroShift on this machine, by way of its API server
  --platform k3s           k3s on this machine, by way of its API server
  --platform microshift-manifests
                           files in /etc/microshift/manifests.d/longshore, which MicroShift reads when it starts

  --no-start               install and configure, but leave the service as it is, and do not ask whether what the
                           platform brings is there
  --uninstall              remove the agent. What it keeps, and what it applied, stays
  --purge                  with --uninstall: remove what it keeps as well: key, certificate and settings

Exit codes: 0 done, 1 failed, 2 wrong options. The last line of the output is `changed` or `unchanged`.
USAGE
}

SETTINGS=/etc/longshore/agent.toml
RECORD=/etc/longshore/installed
STATE=/var/lib/longshore-agent
USER_NAME=longshore-agent
UNIT=longshore-agent.service
PLATFORM_LINK=/etc/systemd/system/$UNIT.d/platform.conf

say() { printf 'longshore: %s\n' "$*"; }

die() {
    printf 'longshore: %s\n' "$*" >&2
    exit 1
}

wrong() {
    printf 'longshore: %s; see --help\n' "$*" >&2
    exit 2
}

have() { command -v "$1" >/dev/null 2>&1; }

has_systemd() { have systemctl; }

# Images are made where systemd is installed and does not run.
runs_systemd() { has_systemd && [ -d /run/systemd/system ]; }

has_user() { id "$USER_NAME" >/dev/null 2>&1; }

# Nothing that is given here has a reason to hold what TOML would have to escape.
check_plain() {
    case $2 in
    *[\"\\]* | *[[:cntrl:]]*) wrong "$1 holds a character that it cannot hold" ;;
    esac
}

parse() {
    from='' digest='' server='' pin='' token_file='' name='' more='' platform='' start=yes action=install purge=no
    while [ $# -gt 0 ]; do
        case $1 in
        --help | -h) usage && exit 0 ;;
        --no-start) start=no ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        --from | --sha256 | --server | --ca-fingerprint | --token-file | --name | --setting | --platform)
            [ $# -ge 2 ] || wrong "$1 wants a value"
            case $1 in
            --from) from=$2 ;;
            --sha256) digest=${2#sha256:} ;;
            --server) server=$2 ;;
            --ca-fingerprint) pin=$2 ;;
            --token-file) token_file=$2 ;;
            --name) name=$2 ;;
            --platform) platform=$2 ;;
            --setting) more="$more$2
" ;;
            esac
            shift
            ;;
        *) wrong "there is no option $1" ;;
        esac
        shift
    done
    check_plain --server "$server"
    check_plain --ca-fingerprint "$pin"
    check_plain --name "$name"
    # Settings are written as a whole; an upgrade, which says none, leaves them and the platform alone.
    [ -z "$server$pin$name$more" ] || platform=${platform:-generic}
    case $platform in
    '' | generic | podman | microshift | k3s | microshift-manifests) ;;
    *) wrong "there is no platform $platform" ;;
    esac
    [ "$action" = uninstall ] || [ "$purge" = no ] || wrong "--purge goes with --uninstall"
}

# What the platform brings has to be there before the agent is started; an image may get it later.
check_platform() {
    [ "$start" = yes ] && { ! has_systemd || runs_systemd; } || return 0
    case $platform in
    podman) check_podman ;;
    microshift) check_cluster MicroShift microshift /var/lib/microshift/resources/kubeadmin/kubeconfig ;;
    k3s) check_cluster k3s k3s /etc/rancher/k3s/k3s.yaml ;;
    esac
}

# Pods are held together by catatonit, which not every package of Podman brings along.
check_podman() {
    if have podman && PATH=$PATH:/usr/libexec/podman:/usr/lib/podman have catatonit; then return; fi
    if have apt-get; then how='apt-get install podman catatonit'; else how="your system's packages podman and catatonit"; fi
    die "there is no Podman with catatonit on this machine; nothing was changed. Install them first: $how"
}

# check_cluster NAME SERVICE KUBECONFIG
check_cluster() {
    [ -e "$3" ] || die "there is no kubeconfig of $1 at $3; nothing was changed. Install and start $1 first" \
        "(systemctl start $2), or give --no-start: then the agent starts with the machine, and waits for $1"
}

find_package() {
    [ -z "$from" ] || return 0
    if have dpkg; then
        pattern="longshore-agent_*_$(dpkg --print-architecture).deb"
    else
        pattern="longshore-agent-*-$(uname -m).tar.gz"
    fi
    for file in "$(dirname "$0")"/$pattern; do
        [ -f "$file" ] || die "there is no $pattern beside this script: say with --from what to install"
        [ -z "$from" ] || die "there are several $pattern beside this script: say with --from which one"
        from=$file
    done
}

check_package() {
    [ -f "$from" ] || die "there is no file $from"
    from=$(cd "$(dirname "$from")" && pwd)/$(basename "$from")
    if [ -z "$digest" ]; then
        sums=$(dirname "$from")/SHA256SUMS
        [ -f "$sums" ] || die "$from cannot be checked: there is no $sums. Give --sha256, or bring the file along"
        digest=$(awk -v name="$(basename "$from")" '{ sub(/^\*/, "", $2) } $2 == name { print $1; exit }' "$sums")
        [ -n "$digest" ] || die "$sums does not list $(basename "$from")"
    fi
    digest=$(printf %s "$digest" | tr '[:upper:]' '[:lower:]')
    actual=$(sha256sum "$from" | cut -d ' ' -f 1)
    [ "$actual" = "$digest" ] ||
        die "$from is damaged, or not what it says: its SHA-256 is $actual, not $digest. Copy it anew"
}

is_installed() {
    [ -f "$RECORD" ] && [ "$(cat "$RECORD")" = "$actual $kind" ] && [ -x "$program" ]
}

install_package() {
    case $from in
    *.deb) kind=deb program=/usr/bin/longshore-agent platforms=/usr/lib/longshore-agent ;;
    *.tar.gz) kind=tarball program=/usr/local/bin/longshore-agent platforms=/usr/local/lib/longshore-agent ;;
    *) wrong "$from is neither a .deb nor a .tar.gz" ;;
    esac
    is_installed && return
    if [ -f "$RECORD" ] && ! grep -q " $kind\$" "$RECORD"; then
        die "the agent was installed in another way before: run $0 --uninstall first; what the agent keeps stays"
    fi
    "install_$kind"
    make_folder /etc/longshore
    printf '%s %s\n' "$actual" "$kind" >"$RECORD"
    changed=yes
    say "installed $("$program" --version)"
}

# apt-get waits for others that install, and says what is missing; dpkg is enough where it is not there.
install_deb() {
    have dpkg || die "this system has no dpkg: install the .tar.gz instead"
    wanted=$(dpkg-deb --field "$from" Architecture)
    [ "$wanted" = "$(dpkg --print-architecture)" ] || dpkg --print-foreign-architectures | grep -qx "$wanted" ||
        die "$from is for $wanted, and this machine is $(dpkg --print-architecture)"
    export DEBIAN_FRONTEND=noninteractive
    if have apt-get; then
        set -- apt-get --quiet --quiet --yes --no-install-recommends --allow-downgrades --reinstall \
            -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install "$from"
    else
        set -- dpkg --install "$from"
    fi
    "$@" >"$scratch/log" 2>&1 || {
        cat "$scratch/log" >&2
        die "$from could not be installed. Where packages that it needs are missing, install them first"
    }
}

install_tarball() {
    tar -xzf "$from" -C "$scratch" --no-same-owner || die "$from cannot be unpacked"
    content=$(echo "$scratch"/longshore-agent-*)
    [ -f "$content/longshore-agent" ] || die "$from holds no agent"
    # The one check that is never wrong, on machines whose kernel and programs differ in width, too.
    "$content/longshore-agent" --version >/dev/null 2>"$scratch/log" ||
        die "the agent of $(basename "$from") does not run on this machine ($(uname -m)): $(cat "$scratch/log")"
    put 755 "$content/longshore-agent" "$program"
    for file in "$content"/platforms/*.conf; do
        put 644 "$file" "$platforms/$(basename "$file")"
    done
    if has_systemd; then
        sed "s,/usr/bin/longshore-agent,$program," "$content/$UNIT" >"$scratch/unit"
        put 644 "$scratch/unit" "/etc/systemd/system/$UNIT"
        put 644 "$content/sysusers.conf" /etc/sysusers.d/longshore-agent.conf
        systemd-sysusers /etc/sysusers.d/longshore-agent.conf
    fi
    reload
    if have restorecon; then restorecon -R "$program" "$platforms"; fi
}

make_folder() { (umask 022 && mkdir -p "$1"); }

reload() { if runs_systemd; then systemctl daemon-reload; fi; }

# put MODE FILE PLACE: whole or not at all, also over a program that runs.
put() {
    make_folder "$(dirname "$3")"
    cp "$2" "$3.longshore-new"
    chmod "$1" "$3.longshore-new"
    mv -f "$3.longshore-new" "$3"
}

# Only where something was said: an upgrade leaves the settings alone.
configure() {
    [ -n "$platform" ] || return 0
    {
        echo "# Written by install.sh, which writes it anew when it is told other settings."
        [ -z "$server" ] || echo "server = \"$server\""
        [ -z "$pin" ] || echo "ca-fingerprint = \"$pin\""
        [ -z "$name" ] || echo "name = \"$name\""
        case $platform in
        microshift | k3s)
            echo 'runtime = "kube"'
            echo "kubeconfig = \"/run/credentials/$UNIT/kubeconfig\""
            ;;
        microshift-manifests)
            echo 'runtime = "directory"'
            echo 'directory = "/etc/microshift/manifests.d/longshore"'
            echo 'layout = "microshift"'
            ;;
        podman) echo 'runtime = "podman"' ;;
        esac
        printf %s "$more"
    } >"$scratch/agent.toml"
    if cmp -s "$scratch/agent.toml" "$SETTINGS"; then return; fi
    "$program" config --config "$scratch/agent.toml" >/dev/null || die "these settings are wrong; nothing was changed"
    if [ -f "$SETTINGS" ]; then cp -p "$SETTINGS" "$SETTINGS.old"; fi
    put 600 "$scratch/agent.toml" "$SETTINGS"
    changed=yes
    say "wrote $SETTINGS"
}

# The service's user reads the settings, and nobody but root writes them. Hooks and proxies' passwords are in them.
protect_settings() {
    [ -f "$SETTINGS" ] && has_user || return 0
    chgrp "$USER_NAME" "$SETTINGS"
    chmod 640 "$SETTINGS"
}

# The platform's drop-in is a link, so that an upgrade reaches it.
grant() {
    [ -n "$platform" ] && has_systemd || return 0
    if [ "$platform" = generic ]; then
        [ -L "$PLATFORM_LINK" ] || return 0
        rm -f "$PLATFORM_LINK"
    else
        drop_in=$platforms/$platform.conf
        [ "$(readlink "$PLATFORM_LINK" 2>/dev/null)" != "$drop_in" ] || return 0
        make_folder "$(dirname "$PLATFORM_LINK")"
        ln -sfn "$drop_in" "$PLATFORM_LINK"
    fi
    reload
    changed=yes
}

# The token goes where only the agent reads it, and only where it is of use: the agent removes it once it has
# served, and a decommissioned device must not come back by a run of this script that meant something else.
hand_over_token() {
    [ -n "$token_file" ] || return 0
    if [ "$token_file" = - ]; then cat >"$scratch/token"; else cat "$token_file" >"$scratch/token"; fi
    [ -s "$scratch/token" ] || die "there is no token in $token_file"
    if [ -e "$STATE/identity.json" ] || cmp -s "$scratch/token" "$STATE/token"; then return; fi
    token_digest=$(tr -d '[:space:]' <"$scratch/token" | sha256sum | cut -d ' ' -f 1)
    if grep -qs "$token_digest" "$STATE/decommissioned.json"; then
        say "this device was decommissioned; only a new token brings it back"
        return
    fi
    if [ ! -d "$STATE" ]; then
        mkdir -p "$STATE"
        if has_user; then chown "$USER_NAME:$USER_NAME" "$STATE"; fi
    fi
    write_token "$(stat -c %u "$STATE")" "$(stat -c %g "$STATE")"
    changed=yes
    say "left the token for the agent"
}

# As the folder's owner: what root writes into a folder of somebody else's could end up elsewhere.
write_token() {
    # shellcheck disable=SC2016 # for the other shell to expand
    setpriv --reuid="$1" --regid="$2" --clear-groups sh -c 'cat >"$0.new" && mv -f "$0.new" "$0"' \
        "$STATE/token" <"$scratch/token"
}

begin() {
    if ! has_systemd; then
        [ "$changed" = no ] || say "there is no systemd here: let your service manager run $program"
        return 0
    fi
    systemctl enable --quiet "$UNIT"
    { [ "$start" = yes ] && runs_systemd; } || return 0
    if [ "$changed" = yes ]; then
        systemctl restart "$UNIT"
    elif ! systemctl is-active --quiet "$UNIT" && [ ! -e "$STATE/decommissioned.json" ]; then
        systemctl start "$UNIT"
    fi
}

uninstall() {
    if has_systemd && systemctl cat "$UNIT" >/dev/null 2>&1; then
        if runs_systemd; then systemctl stop "$UNIT"; fi
        systemctl disable --quiet "$UNIT"
        changed=yes
    fi
    if have dpkg && dpkg-query --show longshore-agent >/dev/null 2>&1; then
        changed=yes
        how=--remove
        [ "$purge" = no ] || how=--purge
        dpkg "$how" longshore-agent >"$scratch/log" 2>&1 || {
            cat "$scratch/log" >&2
            die "the package could not be removed"
        }
    fi
    for file in /usr/local/bin/longshore-agent "/etc/systemd/system/$UNIT" /etc/sysusers.d/longshore-agent.conf \
        /usr/local/lib/longshore-agent "$PLATFORM_LINK" "$RECORD"; do
        if [ -e "$file" ] || [ -L "$file" ]; then
            rm -rf "$file"
            changed=yes
        fi
    done
    rmdir "$(dirname "$PLATFORM_LINK")" 2>/dev/null || true
    if [ "$purge" = yes ]; then
        for file in "$STATE" "$SETTINGS" "$SETTINGS.old"; do
            [ -e "$file" ] || continue
            rm -rf "$file"
            changed=yes
        done
    fi
    rmdir /etc/longshore 2>/dev/null || true
    reload
}

parse "$@"
[ "$(id -u)" = 0 ] || die "run this as root"
umask 077
changed=no
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ "$action" = uninstall ]; then
    uninstall
else
    check_platform
    find_package
    check_package
    install_package
    configure
    protect_settings
    grant
    hand_over_token
    begin
fi
if [ "$changed" = yes ]; then echo changed; else echo unchanged; fi
