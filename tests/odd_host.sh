#!/bin/sh
# Run tests on an unusual host, as root: tests/odd_host.sh [ARGUMENTS OF PYTEST]
#
# Docker and a container run. There is a ruleset of the size of firewalld's. The host forwards
# packets and filters by reverse path. The umask, the locale and TMPDIR differ from the defaults.
# All of this is removed at the end.
# Needs docker.io, docker-cli, busybox-static and locales.
set -eu
for each in busybox docker dockerd localedef; do
    command -v "$each" >/dev/null || { echo "$0: $each is missing" >&2; exit 2; }
done
if ip link show docker0 >/dev/null 2>&1; then
    echo "$0: Docker runs here already: systemctl stop docker.socket docker," \
        "and ip link delete docker0" >&2
    exit 2
fi

if nft list table inet firewalld >/dev/null 2>&1; then
    echo "$0: there is a firewalld: systemctl stop firewalld," \
        "or nft delete table inet firewalld" >&2
    exit 2
fi

work=$(mktemp -d /var/tmp/odd-host.XXXXXX)
docker="docker --host unix://$work/docker.sock"
sysctls='net.ipv4.ip_forward=1
net.ipv4.conf.all.rp_filter=1
net.ipv4.conf.default.rp_filter=2
net.ipv4.conf.default.promote_secondaries=1
net.ipv6.conf.all.forwarding=1'

restore() {
    set +e
    trap - EXIT
    $docker rm --force web >/dev/null 2>&1
    [ -s "$work/docker.pid" ] && kill "$(cat "$work/docker.pid")"
    [ -n "${dockerd-}" ] && wait "$dockerd"
    ip link delete docker0
    # Only the tables of this script and of Docker, and none from before.
    for table in 'inet firewalld' 'ip raw' 'ip mangle' 'ip nat' 'ip filter' \
        'ip6 raw' 'ip6 mangle' 'ip6 nat' 'ip6 filter'; do
        # shellcheck disable=SC2086  # the family and the name are two arguments
        grep -qxF "table $table" "$work/tables" || nft delete table $table 2>/dev/null
    done
    sysctl --quiet --load "$work/sysctls"
    rm -rf "$work"
}

rules() {
    echo 'table inet firewalld {'
    echo 'set ports { type inet_service; flags interval; elements = { 22, 80, 443, 8000-8100 }; }'
    echo 'set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.0/25 }; }'
    echo 'map zones { type ifname : verdict; elements = { lo : accept }; }'
    for zone in block dmz drop external home internal public trusted work; do
        for chain in IN FWD OUT; do
            for part in pre log deny allow post; do
                echo "chain ${chain}_${zone}_${part} {"
                echo 'tcp dport @ports ct state new,untracked accept'
                echo 'ip saddr @blocked meta mark 0x11 log prefix "blocked: " drop'
                echo 'udp dport 5353 ip daddr 224.0.0.251 counter accept'
                echo '}'
            done
        done
    done
    for hook in input forward output; do
        echo "chain filter_$hook { type filter hook $hook priority filter + 10; policy accept;"
        echo 'ct state { established, related } accept; ct status dnat accept'
        echo 'iifname vmap @zones; ct state invalid counter; }'
    done
    echo 'chain nat { type nat hook postrouting priority srcnat + 10; oifname "wan*" masquerade; }'
    echo '}'
}

# What there was before is known before anything is removed.
chmod 755 "$work"
nft list tables >"$work/tables"
for each in $sysctls; do sysctl "${each%=*}"; done >"$work/sysctls"
trap restore EXIT
trap 'exit 1' HUP INT TERM
rules | nft -f -
for each in $sysctls; do sysctl --quiet --write "$each"; done

dockerd --storage-driver=vfs --data-root="$work/docker" --exec-root="$work/exec" \
    --pidfile="$work/docker.pid" --host="unix://$work/docker.sock" >"$work/docker.log" 2>&1 &
dockerd=$!
mkdir -p "$work/root/bin" "$work/locale" "$work/tmp"
cp "$(command -v busybox)" "$work/root/bin/"
localedef --inputfile=tr_TR --charmap=UTF-8 "$work/locale/tr_TR.UTF-8"
localedef --inputfile=de_DE --charmap=UTF-8 "$work/locale/de_DE.UTF-8"
until $docker version >/dev/null 2>&1; do
    kill -0 "$dockerd" || { tail "$work/docker.log"; exit 1; }
    sleep 0.1
done
tar -C "$work/root" -c . | $docker import - busybox >/dev/null
$docker run --detach --name=web --publish=127.0.0.1::80 busybox /bin/busybox sleep 86400 >/dev/null

chmod 1777 "$work/tmp"
umask 077
export TMPDIR="$work/tmp" LOCPATH="$work/locale" LC_ALL=tr_TR.UTF-8 LANG=de_DE.UTF-8
.venv/bin/pytest -q "$@"
