#!/bin/sh
# Tells a running m2u who speaks from which address: what the hooks of a VPN need, with m2u alone.
#
#   feed.sh up ADDRESS ACCOUNT DEVICE SESSION    a device has connected
#   feed.sh down ADDRESS SESSION                 it has gone
#   feed.sh all FILE                             who is there, now and then: address,account,device
#
# SESSION is whatever differs from one visit to the next, such as the time or a number of the VPN's
# own: so a late "down" of the visit before ends nothing. "all" repairs what "up" and "down" missed.
#
# Ends within 200 ms, so that no VPN waits for it: 0 done, 1 refused or not reached, with the reason
# on standard error, 2 wrong usage. A VPN that ends a connection when a hook fails should go on all
# the same: `feed.sh up ... || true`.
set -eu

m2u=${M2U:-m2u}
socket=${M2U_SOCKET:-/run/m2u/feed.sock}
source=${M2U_SOURCE:-vpn}

usage() {
    sed -n 's/^#   \(feed.sh .*\)/\1/p' "$0" >&2
    exit 2
}

case "${1-}:$#" in
    up:5)
        # The same device in a new session takes its place by itself; another device must not.
        exec "$m2u" lease add "$2" --account "$3" --device "$4" --session "$5" \
            --source "$source" --socket "$socket" --timeout 200ms
        ;;
    down:3)
        exec "$m2u" lease release "$2" --session "$3" \
            --source "$source" --socket "$socket" --timeout 200ms
        ;;
    all:2)
        # Nobody waits for this one, and a set may be large.
        exec "$m2u" lease sync "$2" --source "$source" --socket "$socket" --timeout 10s
        ;;
    *) usage ;;
esac
