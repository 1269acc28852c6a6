#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Rows of privet on this machine's /dev/kvm, as KTAP, with kselftest's exit statuses. PRIVET is the program; what
# KSELFTEST_PRIVET_SH_ARGS has comes here as arguments and stands in the place of `--on host`.
privet=${PRIVET:-privet}
if ! command -v "$privet" >/dev/null; then
    echo "TAP version 13"
    echo "1..0 # SKIP there is no privet: put it into the search path, or set PRIVET"
    exit 4
fi
[ $# -gt 0 ] || set -- --on host
status=0
"$privet" run --format ktap "$@" || status=$?
# Wrong usage is 2 there, which the runner takes for an expected failure.
[ $status -ne 2 ] || status=1
exit $status
