#!/bin/sh
# The stored input: is what comes out what it was when the model was compiled?
here=$(dirname -- "$0")
exec "$here/bin/@NAME@" --selftest
