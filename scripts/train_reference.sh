#!/bin/sh
# The packaged encoders: video of the four tasks -> tokenizer -> Toto on single frames, then on video; MAE -> packaged.
# (Those in the package were made by these steps, each on one thread; figures in benchmarks/RESULTS.md.)
# Resumable: run it again after an interruption. On two cores about two hours; BUDGET=short for a trial of minutes.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-outputs/reference}
T=${T:-.venv/bin/toto_robot}
STEPS=1100 VIDEO_STEPS=600 TOKENIZER_STEPS=1300 EPISODES=100
if [ "${BUDGET:-}" = short ]; then STEPS=60 VIDEO_STEPS=60 TOKENIZER_STEPS=60 EPISODES=1; fi

# About half of it with everything randomised, the rest as the tasks are. At EPISODES=100: 3 hours of robot time.
for task in franka_pick:42:38 kuka_pick:42:38 franka_cabinet:24:23 kuka_cabinet:24:23; do
  env=${task%%:*} shares=${task#*:}
  $T collect env="$env" episodes=$((${shares%%:*} * EPISODES / 10)) randomize=[all] seed=100000 \
    out="$OUT/video/${env}_random" run="$OUT/runs/${env}_random"
  $T collect env="$env" episodes=$((${shares##*:} * EPISODES / 10)) seed=200000 \
    out="$OUT/video/${env}_plain" run="$OUT/runs/${env}_plain"
done

# Three quarters of what is seen are the tasks as they are: policies are trained there. Weights in the order of the video.
video= weights=
for task in franka_pick kuka_pick franka_cabinet kuka_cabinet; do
  video="$video,$OUT/video/${task}_plain,$OUT/video/${task}_random" weights="$weights,18,7"
done
video=${video#,} weights=${weights#,}
$T train-tokenizer data="$video" weights="$weights" model=dvae_nano steps=$TOKENIZER_STEPS run="$OUT/tokenizer"
tokenizer="$OUT/tokenizer/pretrained_model" frames="$OUT/tokenizer/frames"
# First every frame alone: policies look at single frames, of which windows of 16 hold one. Then windows of 16.
$T pretrain frames="$frames" weights="$weights" tokenizer="$tokenizer" model=nano steps=$STEPS \
  window_frames=1 batch_size=64 run="$OUT/toto_single_frames"
$T pretrain frames="$frames" weights="$weights" tokenizer="$tokenizer" tokens="$OUT/toto_single_frames/tokens" \
  start="$OUT/toto_single_frames/pretrained_model" model=nano lr=8e-4 steps=$VIDEO_STEPS run="$OUT/toto"
# MAE: as many patches of the same frames as both stages of Toto together.
$T pretrain model=mae_nano frames="$frames" weights="$weights" batch_size=64 steps=$((STEPS + VIDEO_STEPS)) run="$OUT/mae"

if [ "${BUDGET:-}" = short ]; then exit 0; fi # a trial does not replace the packaged weights
data="robot time of FrankaPick, KukaPick, FrankaCabinet and KukaCabinet by scripted experts, in part randomised"
python="$(dirname "$T")/python"
for pair in tokenizer:dvae-small-sim toto:toto-small-sim mae:mae-small-sim; do
  "$python" scripts/package_weights.py "$OUT/${pair%%:*}" "${pair##*:}" --data "$data" --licence apache-2.0
done
