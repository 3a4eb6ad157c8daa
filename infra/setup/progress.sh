# shellcheck shell=bash
# Sourced by the scripts beside it: what they say, and to whom. Everything goes to standard error, because standard
# output is each script's answer (a path), and `make -s env` must print nothing but exports.

# Where built things are kept that do not depend on the checkout, so that a second clone starts at once.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tenantry

say() { printf 'set-up: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit 1
}

# watched WHAT LOG COMMAND... : runs the command with its output in LOG, and says every 15 seconds that it is still at it.
# The command stays in the foreground, so that Ctrl-C reaches it; the ticker ends with the pipe that this shell holds open,
# however this shell dies.
watched() {
  local what=$1 log=$2 start=$SECONDS status=0
  shift 2
  say "$what"
  exec 9> >(tick "$what" "$log")
  "$@" >"$log" 2>&1 9>&- || status=$?
  exec 9>&-
  if ((status != 0)); then
    tail -n 25 "$log" >&2
    say "$what: failed after $((SECONDS - start)) s (the whole output: $log)"
    return "$status"
  fi
  say "$what: done in $((SECONDS - start)) s"
}

tick() {
  local start=$SECONDS status
  while true; do
    status=0
    read -r -t 15 || status=$?
    # Above 128 is the timeout; anything else is the end of the pipe.
    ((status > 128)) || return 0
    say "$1: $((SECONDS - start)) s, $(so_far "$2")"
  done
}

# How far a watched command is: the last thing it said.
so_far() { tail -n 1 "$1" | tr -d '\r' | cut -c -90; }

# locked NAME : waits until no other checkout makes the same cached thing. Held until this process ends.
locked() {
  mkdir -p "$cache"
  exec 8>"$cache/$1.lock"
  if ! flock --nonblock 8; then
    say "another checkout is making $1: waiting for it"
    flock 8
  fi
}
