# Make the machine of a reader, as PID 1 of new mount, network, PID, UTS and IPC namespaces.
# It ends at the end of standard input. Files that a page writes are in tmpfs, also those below
# the tree, so nothing is left behind.
set -euo pipefail

overlays=0
# Show the files of folder $1 at $2, and store changes in tmpfs.
overlay() {
    local changes=/run/machine/$((overlays += 1))
    mkdir -p "$changes/upper" "$changes/work" "$2"
    mount -t overlay -o "lowerdir=$1,upperdir=$changes/upper,workdir=$changes/work" overlay "$2"
}

tree=$PWD
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/machine/tree
mount --bind "$tree" /run/machine/tree  # before it is hidden by one of the folders below
for folder in /etc /opt /root /usr/local; do overlay "$folder" "$folder"; done
for folder in /tmp /var/lib /var/log; do mount -t tmpfs tmpfs "$folder"; done
overlay /run/machine/tree "$tree"
cd "$tree"

hostname host-1
ip link set lo up

. tests/docs/reader.sh
# shellcheck disable=SC1090  # the name is that of the page
[ -z "$1" ] || . "tests/docs/given/$1.sh"
echo ready
read -r
