# A throwaway copy of this machine, booted: namespaces, an overlay over its file system that is kept in memory, and
# systemd as its first process. It sees no network but its own loopback. To be sourced; needs root.
# shellcheck shell=bash
machine_unshares=() machine_directories=()
machine_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# machine_start DIRECTORY...: boots one, and waits until it is up. It sees the directories under the same names, and
# cannot write there. $machine_pid says which machine `machine` is about: the one that was started last. One that is
# started while $machine_beside is another one's has the same network.
machine_start() {
    local network=(unshare --net)
    [[ -z ${machine_beside:-} ]] || network=(nsenter --target "$machine_beside" --net)
    machine_directory=$(mktemp -d "${TMPDIR:-/tmp}/longshore-machine.XXXXXX")
    machine_directories+=("$machine_directory")
    "${network[@]}" unshare --fork --kill-child --pid --mount --propagation slave --uts --ipc --cgroup \
        bash "${BASH_SOURCE[0]}" boot "$machine_directory" "$@" >"$machine_directory/log" 2>&1 </dev/null &
    machine_unshare=$!
    machine_unshares+=("$machine_unshare")
    local state=
    for ((tries = 0; tries < 600; tries++)); do
        machine_pid=$(pgrep --parent "$machine_unshare" || true)
        state=$([[ -z $machine_pid ]] || machine systemctl is-system-running 2>/dev/null || true)
        [[ $state != running && $state != degraded ]] || return 0
        kill -0 "$machine_unshare" 2>/dev/null || break
        sleep 0.1
    done
    cat "$machine_directory/log" >&2
    echo "the machine does not come up: ${state:-no answer}" >&2
    return 1
}

# machine COMMAND...: runs it there.
machine() {
    nsenter --target "$machine_pid" --all --wdns=/ \
        env --ignore-environment HOME=/root "PATH=$machine_path" "$@"
}

# machine_stop: ends all of them.
machine_stop() {
    local number
    for number in "${!machine_unshares[@]}"; do
        kill -KILL "${machine_unshares[number]}" 2>/dev/null || true
        wait "${machine_unshares[number]}" 2>/dev/null || true
        rm -rf "${machine_directories[number]}"
    done
    machine_unshares=() machine_directories=()
}

# What the first process of the new namespaces does before it becomes systemd.
machine_boot() {
    local memory=$1/memory root=$1/memory/root node shared
    shift
    mkdir "$memory"
    mount -t tmpfs -o mode=755 tmpfs "$memory"
    mkdir "$memory/upper" "$memory/work" "$root"
    mount -t overlay -o "lowerdir=/,upperdir=$memory/upper,workdir=$memory/work" overlay "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    if [[ -d /sys/fs/cgroup/systemd ]]; then
        mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
        mkdir "$root/sys/fs/cgroup/unified" "$root/sys/fs/cgroup/systemd"
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
        mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
        # systemd mounts these two together or not at all, and Podman needs them.
        for node in cpu cpuacct; do
            mkdir "$root/sys/fs/cgroup/$node"
            mount -t cgroup -o "$node" cgroup "$root/sys/fs/cgroup/$node" 2>/dev/null || rmdir "$root/sys/fs/cgroup/$node"
        done
    else
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    fi
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in null zero full random urandom tty; do
        touch "$root/dev/$node"
        mount --bind "/dev/$node" "$root/dev/$node"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    for shared; do
        mkdir -p "$root$shared"
        mount --bind -o ro "$shared" "$root$shared"
    done
    : >"$root/etc/machine-id"
    rm -f "$root/usr/sbin/policy-rc.d"
    mkdir "$root/run/before"
    cd "$root"
    pivot_root . run/before
    umount --lazy run/before
    rmdir run/before
    # As systemd has it where it is not told that it runs in a container. Credentials of services need it.
    mount --make-rshared /
    exec env --ignore-environment container=longshore "PATH=$machine_path" \
        /lib/systemd/systemd --log-target=console --show-status=no systemd.unit=basic.target
}

if [[ ${1:-} == boot && ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    shift
    machine_boot "$@"
fi
