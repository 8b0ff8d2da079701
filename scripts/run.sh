# Common part of run_tune.sh, run_test.sh and run_experiment.sh, which source it with their verb.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"

verb=$1
shift
if [ $# -eq 0 ] || [ "$1" = --help ]; then
    grep '^#' "$0" | sed -n '2,$s/^# \{0,1\}//p'
    exit $(($# == 0 ? 2 : 0))
fi
dry_run=
launch=
words=()
while [ $# -gt 0 ]; do
    case $1 in
        --dry_run | --dry-run) dry_run=1 ;;
        --launch)
            if [ -z "${2:-}" ] || [ -n "$launch" ]; then
                echo "error: --launch wants a command, once" >&2
                exit 2
            fi
            launch=$2
            shift
            ;;
        *) words+=("$1") ;;
    esac
    shift
done
launch=${launch:-accelerate launch}
commands=$(python -m scripts.grid "$verb" "${words[@]}" --plan) || exit
total=$(wc -l <<<"$commands")

# Each run is a process group. A signal that stops the sweep is passed on to all its processes, which save and stop.
set -m
child=
stopped=
stop() {
    stopped=$1
    [ -n "$child" ] && kill -s TERM -- "-$child" 2>/dev/null
}
trap 'stop 130' INT
trap 'stop 75' TERM USR1

failed=()
number=0
began=$SECONDS
while read -r line; do
    number=$((number + 1))
    eval "run=($line)" # quoted by scripts.grid
    command=($launch -m "${run[@]}")
    if [ -n "$dry_run" ]; then
        printf '%s\n' "$launch -m $line"
        continue
    fi
    left=
    [ "$number" -gt 1 ] && left=", about $(((SECONDS - began) * (total - number + 1) / (number - 1) / 60)) min left"
    printf '\n[%d of %d%s] %s\n' "$number" "$total" "$left" "$launch -m $line"
    "${command[@]}" </dev/null &
    child=$!
    wait "$child"
    code=$?
    while [ -n "$stopped" ] && kill -0 -- "-$child" 2>/dev/null; do # the launcher may end before its processes
        sleep 0.1
    done
    child=
    if [ -n "$stopped" ] || [ "$code" -eq 75 ]; then
        echo "stopped in run $number of $total: the same command resumes from there" >&2
        exit "${stopped:-75}"
    fi
    [ "$code" -ne 0 ] && failed+=("exit code $code: $launch -m $line")
done <<<"$commands"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\n%d of %d runs failed:\n' "${#failed[@]}" "$total" >&2
    printf '  %s\n' "${failed[@]}" >&2
    exit 1
fi
