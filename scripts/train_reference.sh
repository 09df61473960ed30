#!/bin/sh
# The packaged encoders: video of the four tasks -> tokenizer -> Toto, the same without video context, MAE -> packaged.
# (Those in the package were made by these steps at 74d20f0, each on one thread; figures in benchmarks/RESULTS.md.)
# Resumable: run it again after an interruption. On two cores about two hours; BUDGET=short for a trial of minutes.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-outputs/reference}
T=${T:-.venv/bin/toto_robot}
STEPS=1500 TOKENIZER_STEPS=2500 EPISODES=100
if [ "${BUDGET:-}" = short ]; then STEPS=60 TOKENIZER_STEPS=60 EPISODES=1; fi

# About half of it with everything randomised, the rest as the tasks are. At EPISODES=100: 3 hours of robot time.
for task in franka_pick:42:38 kuka_pick:42:38 franka_cabinet:24:23 kuka_cabinet:24:23; do
  env=${task%%:*} shares=${task#*:}
  $T collect env="$env" episodes=$((${shares%%:*} * EPISODES / 10)) randomize=[all] seed=100000 \
    out="$OUT/video/${env}_random" run="$OUT/runs/${env}_random"
  $T collect env="$env" episodes=$((${shares##*:} * EPISODES / 10)) seed=200000 \
    out="$OUT/video/${env}_plain" run="$OUT/runs/${env}_plain"
done

$T train-tokenizer data="$OUT/video" model=dvae_local steps=$TOKENIZER_STEPS run="$OUT/tokenizer"
tokenizer="$OUT/tokenizer/pretrained_model" frames="$OUT/tokenizer/frames"
$T pretrain frames="$frames" tokenizer="$tokenizer" model=nano steps=$STEPS run="$OUT/toto"
# The same network, tokens and budget, but every frame alone: what does seeing the past bring?
$T pretrain frames="$frames" tokenizer="$tokenizer" tokens="$OUT/toto/tokens" model=nano steps=$STEPS \
  window_frames=1 batch_size=64 run="$OUT/toto_single_frames"
$T pretrain model=mae_nano frames="$frames" equal_to="$OUT/toto" equal=tokens run="$OUT/mae"

if [ "${BUDGET:-}" = short ]; then exit 0; fi # a trial does not replace the packaged weights
data="robot time of FrankaPick, KukaPick, FrankaCabinet and KukaCabinet by scripted experts, in part randomised"
python="$(dirname "$T")/python"
for pair in tokenizer:dvae-small-sim toto:toto-small-sim mae:mae-small-sim; do
  "$python" scripts/package_weights.py "$OUT/${pair%%:*}" "${pair##*:}" --data "$data" --licence apache-2.0
done
