#!/bin/sh
# From `plugin new` to a run in which the plugin is swapped. Everything it makes is in a temporary
# directory. Usage, from the root of the checkout: examples/walk-through.sh [LANGUAGE]
set -eu

language=${1:-rust}
host=$PWD/target/release/plastic-host
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Two layers and little text: seconds instead of a minute.
small="--layers model.layers.[0-1].* --window 128 --windows 4 --calibration-windows 6 --gradient-windows 3 --max-loss-increase 3"

say() { printf '\n== %s\n' "$1"; }

say "1. Begin a policy in $language, and build it"
"$host" plugin new my-policy --lang "$language" "$work/my-policy"
"$host" plugin build "$work/my-policy" -o "$work/my-policy.wasm"

say '2. What is it? Does it keep the contract?'
"$host" plugin inspect "$work/my-policy.wasm"
"$host" plugin check "$work/my-policy.wasm" --cases 4 --quiet

say '3. Run it, with energy in the shadow'
# Exit code 3: the evaluator rejected everything, which is its right.
"$host" --policy "$work/my-policy.wasm" --shadow energy $small --steps 2 --out "$work/first" || [ $? -eq 3 ]

say '4. Decide again, from the record: the same policy, then another one'
"$host" replay "$work/first" --policy "$work/my-policy.wasm"
"$host" replay "$work/first" --policy energy

say '5. Work on it without the model'
"$host" plugin record "$work/first" -o "$work/seen.json"
"$host" plugin replay "$work/my-policy.wasm" "$work/seen.json" --write "$work/plans.json"
"$host" plugin replay "$work/my-policy.wasm" "$work/seen.json" --expect "$work/plans.json"

say '6. Let nothing else in: lock it, sign it'
cd "$work"
"$host" plugin lock my-policy.wasm
"$host" plugin keygen --no-password --out my
"$host" plugin sign my-policy.wasm --key my.key
"$host" plugin verify my-policy.wasm --key my.pub
cd - >/dev/null

say '7. Swap it while it runs'
"$host" --policy "$work/my-policy.wasm" --watch $small --steps 20 --out "$work/second" >"$work/second.log" 2>&1 &
run=$!
until grep -q '"event":"step"' "$work/second/journal.jsonl" 2>/dev/null; do
    kill -0 $run || { cat "$work/second.log"; exit 1; }
    sleep 0.1
done
# Another share to keep, in whichever file says it; then built in the place of the old one.
find "$work/my-policy" -maxdepth 2 \( -name 'policy.*' -o -name lib.rs \) -exec sed -i.old 's/0\.5/0.4/g' {} +
"$host" plugin build "$work/my-policy" -o "$work/my-policy.wasm" --quiet
wait $run || [ $? -eq 3 ]
"$host" replay "$work/second"
grep '"event":"swap"' "$work/second/journal.jsonl" | grep -q '"carried":true' 
echo 'done'
