# The shell of a reader on the machine: a failed command ends it.
set -euo pipefail -E
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH=$PWD/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8
unset PYTHONDONTWRITEBYTECODE  # the tests may run with it; a reader would wait longer

position='before the first block'
trap 'echo "$position: exit $?: $BASH_COMMAND" >&2' ERR

# Wait until file $2 has a line that matches $1; fail after 60 s.
wait_for_line() {
    # shellcheck disable=SC2016  # the inner shell expands them
    timeout 60 sh -c 'until grep -qs -e "$1" "$2"; do sleep 0.1; done' sh "$1" "$2" && return
    echo "no line '$1' in $2:" >&2
    cat "$2" >&2
    return 1
}

# Run the command $2 until it has printed a line that matches $1. Then it must exit 0 on SIGTERM.
until_sigterm() {
    local printed
    printed=$(mktemp)
    bash -c "exec $2" >"$printed" 2>&1 &
    while ! grep -q -e "$1" "$printed" && kill -0 $! 2>/dev/null; do sleep 0.1; done
    cat "$printed"
    grep -q -e "$1" "$printed"  # else the command has ended
    kill $!
    wait $!
}
