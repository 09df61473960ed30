#!/bin/sh
# Make sure MuJoCo can render without a display (EGL or OSMesa), and install what is missing where that is allowed.
# Never fails: without the right to install it prints the command to run. `toto_robot doctor` tries rendering for real.
set -u

have_library() { ldconfig -p 2>/dev/null | grep -q "$1"; }

missing=""
have_library libEGL.so.1 || missing="$missing libegl1"
have_library libGL.so.1 || missing="$missing libgl1"
have_library libgthread-2.0.so.0 || missing="$missing libglib2.0-0"
# robosuite -> pynput -> evdev is built from source.
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev linux-libc-dev"
[ -n "$missing" ] || exit 0

install="apt-get install -y --no-install-recommends$missing"
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  echo "setup: installing system libraries:$missing"
  { apt-get update -qq && $install -qq; } >/dev/null 2>&1 || echo "setup: failed; please run: apt-get update && $install"
else
  echo "setup: system libraries are missing; please run: sudo apt-get update && sudo $install"
fi
exit 0
