#!/bin/sh
# Every hash of the model, then its stored input: is what comes out what it was when the model was compiled?
here=$(dirname -- "$0")
exec "$here/bin/sparsec-device" "$here/model.sparsec" "$@" --selftest
