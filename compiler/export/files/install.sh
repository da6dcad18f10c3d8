#!/bin/sh
# install.sh - install the folder that this script lies in beside the versions that are there, or go back
#
#     sh install.sh [--prefix DIR] [--require-signature KEY.pub] [--after COMMAND]
#     sh install.sh [--prefix DIR] [--after COMMAND] --rollback
#     sh install.sh [--prefix DIR] --status
#
#     DIR/releases/ID   versions; ID is the beginning of the hash of their SHA256SUMS
#     DIR/current       link to the version in use, changed by one rename
#     DIR/previous      link to the one before
#     DIR/incoming/ID   what is being copied here; a whole one moves to releases
#
# COMMAND runs after each change of `current`, for example to restart a service.  If it fails, the change is
# taken back.  A key in DIR/require-signature.pub is required of every folder.
#
# Exit status: 0 done, 1 refused and nothing changed, 2 wrong usage, 3 installed and taken back, 4 another
# installation is at work.  POSIX shell, as BusyBox has it, with sha256sum, readlink and mv -T, and /proc.

set -u
umask 022
name=@NAME@
here=$(cd -- "$(dirname -- "$0")" && pwd) || exit 1
prefix=/opt/sparsec/$name
[ "$(id -u)" = 0 ] || prefix=${HOME:-/tmp}/sparsec/$name
key= after= action=install

say() { echo "$name: $*"; }
die() { status=$1; shift; echo "$name: $*" >&2; exit "$status"; }

while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --require-signature | --after)
        [ $# -gt 1 ] || die 2 "$1 needs a value"
        case $1 in --prefix) prefix=$2 ;; --after) after=$2 ;; *) key=$2 ;; esac
        shift
        ;;
    --rollback) action=rollback ;;
    --status) action=status ;;
    --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die 2 "unknown option $1; --help lists them" ;;
    esac
    shift
done
prefix=${prefix%/}
case $prefix in /*) ;; *) die 2 "--prefix must be an absolute path, found $prefix" ;; esac
[ -z "$key" ] || [ -r "$key" ] || die 1 "cannot read the key $key"

# Sets `current` and `previous` to the versions that the links name, empty where there is no link.
read_links() {
    current= previous=
    if [ -L "$prefix/current" ]; then current=$(readlink "$prefix/current") || die 1 "cannot read $prefix/current"; fi
    if [ -L "$prefix/previous" ]; then previous=$(readlink "$prefix/previous") || die 1 "cannot read $prefix/previous"; fi
    current=${current##*/} previous=${previous##*/}
}

# Makes a link by one rename: whoever looks sees the old one or the new one.
point() { ln -sfn "releases/$2" "$prefix/.$1.$$" && mv -Tf "$prefix/.$1.$$" "$prefix/$1"; }

# DIR/lock is a link to "process@boot": made at once with its content, and of no worth when that process is gone.
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
me=$$@$boot

holds() { [ "$(readlink "$prefix/lock")" = "$me" ]; }

lock() {
    for _ in 1 2 3; do
        said=$(ln -s "$me" "$prefix/lock" 2>&1) && return
        holder=$(readlink "$prefix/lock") || continue
        [ "${holder#*@}" = "$boot" ] && [ -d "/proc/${holder%%@*}" ] && break
        # Who moves the old lock away may have met a new one in its place; then that one's owner notices, too.
        mv -Tf "$prefix/lock" "$prefix/.lock.$$" 2>/dev/null || continue
        [ "$(readlink "$prefix/.lock.$$")" = "$holder" ] || break
    done
    [ -n "${holder:-}" ] || die 1 "cannot write in $prefix: $said"
    die 4 "another installation, process ${holder%%@*}, is at work in $prefix"
}

cleanup() {
    if holds; then rm -f "$prefix/lock"; fi
    rm -f "$prefix/.current.$$" "$prefix/.previous.$$" "$prefix/.probe.$$" "$prefix/.lock.$$"
}

prepare() {
    mkdir -p "$prefix/releases" "$prefix/incoming" || die 1 "cannot make folders in $prefix"
    trap cleanup EXIT
    trap 'exit 1' HUP INT TERM
    lock
    ln -sfn . "$prefix/.probe.$$" && mv -Tf "$prefix/.probe.$$" "$prefix/.probe" && rm -f "$prefix/.probe" ||
        die 1 "cannot rename links in $prefix: it needs space, and an mv that knows -T (BusyBox 1.33 or newer)"
}

# Every file listed, and no other, has the hash that is listed.
check_files() {
    [ -f "$1/SHA256SUMS" ] || die 1 "$1 has no SHA256SUMS: it was not copied whole"
    said=$(cd -- "$1" && sha256sum -c SHA256SUMS 2>&1) ||
        die 1 "damaged: $(echo "$said" | grep -v ': OK$' | head -n 1)"
    found=$(cd -- "$1" && find . -type f ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig | wc -l)
    [ "$found" -eq "$(wc -l <"$1/SHA256SUMS")" ] || die 1 "there are files that SHA256SUMS does not list"
    odd=$(find "$1" ! -type f ! -type d) && [ -z "$odd" ] || die 1 "there is something that is neither a file nor a folder"
}

# By the program of the version in use, which is trusted, where there is one.
check_signature() {
    verify=$prefix/current/bin/sparsec-verify
    [ -x "$verify" ] || verify=$1/bin/sparsec-verify
    for trusted in "$key" "$prefix/require-signature.pub"; do
        [ -n "$trusted" ] && [ -e "$trusted" ] || continue
        said=$("$verify" "$1/SHA256SUMS" "$trusted" 2>&1) || die 1 "refused: $said"
    done
}

# Moves what was copied to `incoming`, or copies what lies elsewhere, to releases/$id.
place() {
    case $1 in
    "$prefix/incoming/"*) mv -Tf "$1" "$prefix/releases/$id" || die 1 "cannot move to $prefix/releases/$id" ;;
    *)
        rm -rf "$prefix/incoming/$id"
        if ! cp -R "$1" "$prefix/incoming/$id" || ! mv -T "$prefix/incoming/$id" "$prefix/releases/$id"; then
            rm -rf "$prefix/incoming/$id"
            die 1 "cannot copy to $prefix"
        fi
        check_files "$prefix/releases/$id"
        ;;
    esac
}

# Makes releases/$1 current; if COMMAND then fails, both links are again what they were.
switch() {
    holds || die 4 "another installation took over in $prefix"
    before=$current
    if [ -n "$before" ]; then point previous "$before" || die 1 "cannot change $prefix/previous"; fi
    point current "$1" || die 1 "cannot change $prefix/current"
    sync
    [ -n "$after" ] || return 0
    sh -c "$after" && return 0
    if [ -n "$before" ]; then
        point current "$before"
        if [ -n "$previous" ]; then point previous "$previous"; else rm -f "$prefix/previous"; fi
        sh -c "$after" || say "the command fails with the version before, too" >&2
        die 3 "'$after' failed: back to $before"
    fi
    rm -f "$prefix/current"
    die 3 "'$after' failed: there is no version before, so none is in use now"
}

# Removes versions that no link names, and copies that were never finished.
prune() {
    read_links
    for path in "$prefix"/releases/* "$prefix"/incoming/*; do
        [ -e "$path" ] || continue
        case ${path##*/} in "$current" | "$previous") continue ;; esac
        case $path in
        "$prefix"/incoming/*) [ -n "$(find "$path" -prune -mtime +0)" ] || continue ;; # being copied, maybe
        esac
        rm -rf "$path"
    done
}

install() {
    check_files "$here"
    check_signature "$here"
    id=$(sha256sum <"$here/SHA256SUMS" | cut -c 1-16)
    [ ${#id} -eq 16 ] || die 1 "cannot hash $here/SHA256SUMS"
    target=$prefix/releases/$id
    if [ "$id" = "$current" ]; then
        (check_files "$target") && sh "$target/selftest" || die 1 "$id is in use already, and it is not right"
        case $here in "$prefix/incoming/"*) rm -rf "$here" ;; esac
        say "$id is in use already"
        return
    fi
    [ "$id" = "$previous" ] && (check_files "$target") 2>/dev/null || { rm -rf "$target" && place "$here"; }
    sync
    if ! sh "$target/selftest"; then
        [ "$id" = "$previous" ] || rm -rf "$target"
        die 1 "the self-test of $id failed: ${current:-no version} stays in use"
    fi
    switch "$id"
    prune
    case $here in "$prefix/incoming/"*) rm -rf "$here" ;; esac
    say "installed $id"
}

rollback() {
    back=$previous
    [ -n "$back" ] || die 1 "there is no previous version in $prefix"
    [ "$back" != "$current" ] || die 1 "the previous version $back is in use already"
    (check_files "$prefix/releases/$back") && sh "$prefix/releases/$back/selftest" ||
        die 1 "the previous version $back is not right: $current stays in use"
    switch "$back"
    say "rolled back to $back"
}

if [ "$action" = status ]; then
    read_links
    say "current ${current:-none}, previous ${previous:-none}"
    exit
fi
prepare
read_links
"$action"
