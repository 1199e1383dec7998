#!/bin/sh
# Puts together the file system of the container image: scripts/image-root.sh BINARY FOLDER
#
# The binary, the libraries that it is linked with, the certificates that TLS connections to
# PostgreSQL and to token issuers are checked against, and the folder of the log. tests/compose runs
# it too, and starts the binary in what it made.
set -eu

binary=$1
root=$2

mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/var/lib/rowcast"
cp "$binary" "$root/usr/local/bin/rowcast"

# `ldd` writes "name => /path (address)", and the loader's path alone.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
done

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"

# Names are looked up in /etc/hosts, then by DNS; both are in the C library itself.
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
echo 'nobody:x:65534:65534:nobody:/:/nonexistent' > "$root/etc/passwd"
echo 'nogroup:x:65534:' > "$root/etc/group"
