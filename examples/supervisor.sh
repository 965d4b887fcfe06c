#!/bin/sh
# Run a program in a fenced sandbox of its own: supervisor.sh PROGRAM [ARGUMENT]...
#
# It prints each attempt to bypass the proxy, and allows an approved destination at the first attempt.
# Needs root, a service (`ocsf-nft run --config FILE`, with the key control), curl and jq.
set -eu
[ $# -gt 0 ] || { echo "usage: supervisor.sh PROGRAM [ARGUMENT]..." >&2; exit 2; }

control=${OCSF_NFT_CONTROL:-/run/ocsf-nft/control.sock}
name=job-$$
# The proxy listens at the host's end of the sandbox's only link.
host=10.200.0.1
sandbox=10.200.0.2
approved=203.0.113.7:443
folder=$(mktemp -d)

# Send a request to the service: api METHOD PATH [OPTION OF CURL]...
api() {
    method=$1 path=$2
    shift 2
    curl --silent --show-error --fail-with-body --unix-socket "$control" --request "$method" \
        "http://localhost/v1$path" "$@"
}

# Convert events to lines: the identifier of an attempt, its destination, and a message.
attempts() {
    jq --unbuffered -r 'select(.class_name == "Network Activity")
        | "\(.metadata.uid) \(.dst_endpoint.ip):\(.dst_endpoint.port) \(.message)"'
}

watch() {
    attempts | while read -r uid destination message; do
        echo "$message"
        echo "$uid" >"$folder/last"
        [ "$destination" != "$approved" ] || allow "tcp:$destination"
    done
}

allow() {
    present=$(api GET "/sandboxes/$name")
    policy=$(echo "$present" | jq --arg exception "$1" '.policy | .allow = (.allow + [$exception] | unique)')
    # With If-Match, a change by another program since then is not overwritten: status 412.
    api PUT "/sandboxes/$name" --header "If-Match: $(echo "$present" | jq -r .etag)" \
        --data "$policy" | jq -r '.changes[]'
}

end() {
    if [ -n "${streaming-}" ]; then
        kill "$streaming"
        wait
    fi
    if [ -n "${added-}" ]; then
        api DELETE "/sandboxes/$name" --output "$folder/final"
        # All attempts are stored now: print those after the last one that is printed.
        api GET "/events?sandbox=$name&after=$(cat "$folder/last")" | attempts | cut -d ' ' -f 3-
        jq -r --arg name "$name" '"\($name): \([.counts[].refused] | add) packets refused"' \
            "$folder/final"
    fi
    ip netns delete "$name"
    rm -r "$folder"
}

ip netns add "$name"
trap end EXIT
ip link add "v$$" type veth peer name eth0 netns "$name"
ip address add "$host/30" dev "v$$"
ip link set "v$$" up
ip -n "$name" address add "$sandbox/30" dev eth0
ip -n "$name" link set eth0 up
ip -n "$name" link set lo up
ip -n "$name" route add default via "$host"

: >"$folder/added"
# Before the program starts. When this returns, the fence is active and watched.
api PUT "/sandboxes/$name" --output "$folder/added" --data "{
    \"netns\": \"$name\", \"proxy\": [\"$host:3128\"], \"labels\": {\"started-by\": \"supervisor.sh\"}
}" || {
    cat "$folder/added" >&2
    echo "supervisor.sh: the service at $control has added no sandbox" >&2
    exit 3
}
added=1

mkfifo "$folder/events"
: >"$folder/last"
curl --silent --no-buffer --unix-socket "$control" \
    "http://localhost/v1/events?sandbox=$name&follow=1" >"$folder/events" &
streaming=$!
watch <"$folder/events" &

ip netns exec "$name" "$@"
