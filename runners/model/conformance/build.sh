#!/usr/bin/env bash
# Builds upstream's KVM selftests, unmodified and dynamically linked, and prints the directory they are in.
#
#   build.sh [TREE-OR-ARCHIVE]
#
# The source is a kernel tree, or an archive of one as Debian's linux-source packages have it in /usr/src. It is
# only read; what is built goes to ${XDG_CACHE_HOME:-~/.cache}/privet/model-selftests.
set -euo pipefail

source=${1:-}
if [ -z "$source" ]; then
    source=$(find /usr/src -maxdepth 1 -name 'linux-source-*.tar.xz' 2>/dev/null | sort -V | tail -n 1)
    [ -n "$source" ] || { echo "build.sh: no kernel source: name a tree or archive, or install linux-source-7.3" >&2; exit 2; }
fi
[ -e "$source" ] || { echo "build.sh: no such kernel source: $source" >&2; exit 2; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/privet/model-selftests
mkdir -p "$cache"
# Keyed by what the source is, so that a newer one is built anew.
key=$(printf '%s' "$(realpath "$source") $(stat -c '%Y %s' "$source")" | sha256sum | cut -c1-16)
if [ -d "$cache/$key" ]; then
    echo "$cache/$key"
    exit
fi

work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
parts=(Makefile Kbuild Kconfig scripts include arch/x86 usr drivers/dma/idxd drivers/dma/ioat
    drivers/net/ethernet/intel/igb tools/include tools/arch tools/build tools/lib tools/scripts tools/testing/selftests)
mkdir "$work/tree"
if [ -d "$source" ]; then
    (cd "$source" && tar -c --exclude='*.o' --exclude='*.a' --exclude='*.cmd' "${parts[@]}") | tar -x -C "$work/tree"
else
    # tar is cut off after the first name.
    top=$( (tar -tf "$source" 2>/dev/null || true) | head -n 1 | cut -d/ -f1)
    tar -xf "$source" -C "$work/tree" --strip-components=1 "${parts[@]/#/$top/}"
fi
make -C "$work/tree" ARCH=x86 headers >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
# Some tests want libraries that are not needed here: the others are built all the same.
make -C "$work/tree/tools/testing/selftests/kvm" -k -j"$(nproc)" ARCH=x86 OUTPUT="$work/built" \
    KHDR_INCLUDES="-isystem $work/tree/usr/include" >>"$work/log" 2>&1 || true
[ -x "$work/built/guest_print_test" ] || { tail -n 20 "$work/log" >&2; exit 1; }
find "$work/built" -name '*.[od]' -delete
mv "$work/built" "$cache/$key"
echo "$cache/$key"
