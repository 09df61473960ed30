"""Does the analysis of a comparison find what was put into the runs, and stay silent where nothing was?"""

import json
import re

import numpy as np
import pytest

from policies.compare_analysis import DEMONSTRATIONS, STEPS, analyse, success_curve
from policies.compare_record import Run
from policies.compare_report import write_comparison
from policies.compare_words import sentences

EPISODES = 40


def make_run(random, rate, encoder, env="pick", demonstrations=20, seed=0, **more):
    """A policy that succeeds at `rate` on starts that are as hard for every policy."""
    hardness = np.random.default_rng(7).random(EPISODES)
    wins = hardness + random.normal(0, 0.1, EPISODES) < rate
    records = [{"success": bool(win), "steps": 60 if win else 166, "reward": float(win)} for win in wins]
    return Run(
        env=env, encoder=encoder, demonstrations=demonstrations, seed=seed, test=more.pop("test", "plain"),
        records=records, **more,
    )  # fmt: skip


def grid(gap, seeds=5, tasks=("pick", "cabinet"), counts=(20, 50), test="plain"):
    """Encoder b is `gap` behind a; every policy seed moves both."""
    random = np.random.default_rng(0)
    runs = []
    for env in tasks:
        for seed in range(seeds):
            shift = random.normal(0, 0.05)
            for count in counts:
                base = 0.55 + 0.3 * (count == 50) + shift
                for encoder, rate in (("a", base), ("b", base - gap + random.normal(0, 0.03)), ("dead", -1.0)):
                    runs.append(make_run(random, rate, encoder, env, count, seed, test=test))
    return runs


def study(runs, reference="a"):
    return analyse(runs, encoders=["a", "b", "dead"], reference=reference, targets=(0.6,))


def pair_of(result, second, count=20):
    (found,) = [p for p in result["pairs"] if p["second"] == second and p["demonstrations"] == count]
    return found


def test_a_real_difference_is_shown_and_a_false_one_is_not():
    result = study(grid(0.25))
    found = pair_of(result, "b")
    assert found["shown"] and found["tasks"] == 2 and found["seeds"] == 5
    assert found["difference"][0] == pytest.approx(0.25, abs=0.06)
    assert found["probability_of_improvement"][0] > 0.9
    assert "a is ahead" in found["words"] and "[+" in found["words"]
    equal = pair_of(study(grid(0.0)), "b")
    assert not equal["shown"] and "no difference is shown" in equal["words"]
    assert re.search(r"about \d+ policy seeds a task", equal["words"])
    behind = study(grid(0.25), reference="b")
    assert "a is ahead" in next(p for p in behind["pairs"] if p["second"] == "a")["words"]


def test_one_policy_seed_never_shows_anything():
    found = pair_of(study(grid(0.4, seeds=1)), "b")
    assert found["episodes"]["mcnemar_p"] < 0.001 and not found["shown"]
    assert "One policy seed says nothing about the encoders" in found["words"]


def test_pairs_use_only_seeds_that_both_encoders_have():
    runs = [run for run in grid(0.25) if run.encoder != "b" or run.seed in (1, 3)]
    found = pair_of(study(runs), "b")
    assert found["seeds"] == 2 and sum(found["episodes"][k] for k in ("both", "only_first", "only_second", "neither"))
    expected = [r.rate for r in runs if r.encoder == "a" and r.seed in (1, 3) and r.demonstrations == 20]
    others = [r.rate for r in runs if r.encoder == "b" and r.demonstrations == 20]
    assert found["difference"][0] == pytest.approx(np.mean(expected) - np.mean(others), abs=1e-4)


def test_dead_policies_are_counted_and_told():
    result = study(grid(0.1))
    cell = next(c for c in result["cells"] if c["encoder"] == "dead" and c["demonstrations"] == 50)
    assert cell["dead"] == cell["policies"] == 10 and cell["iqm"] == [0, 0, 0]
    assert cell["pooled"]["wilson95"][1] > 0 and cell["steps_to_success"] == {}
    assert any("10 of 10 policies are dead" in line for line in sentences(result))


def test_learning_curves_say_how_much_is_needed():
    curve = next(c for c in study(grid(0.25))["curves"] if c["encoder"] == "a")
    assert curve["unit"] == DEMONSTRATIONS and curve["x"] == [20, 50]
    assert curve["steps_to"]["0.6"]["reached"] == curve["steps_to"]["0.6"]["of"] == 10
    assert 20 <= curve["steps_to"]["0.6"]["median"] < 50
    dead = next(c for c in study(grid(0.25))["curves"] if c["encoder"] == "dead")
    assert dead["steps_to"]["0.6"] == {
        "reached": 0, "of": 10, "median": None, "interval95": [None, None], "values": [],
    }  # fmt: skip
    assert curve["task_means"]["pick"][0][1] < np.mean([run[0] for run in curve["by_task"]["pick"]]) < 1
    assert study(grid(0.25, counts=(20,)))["curves"] == []


def test_the_median_of_where_a_target_is_reached_lies_between_the_middle_two():
    random = np.random.default_rng(0)

    def reached(*where):
        runs = [
            make_run(random, 0.9, "a", seed=seed, curve=((0, 0.0), (x, 0.6)) if x else ((0, 0.0), (900, 0.1)))
            for seed, x in enumerate(where)
        ]
        return study(runs)["curves"][0]["steps_to"]["0.6"]

    assert reached(100, 200, 300, 500)["median"] == 250 and reached(100, 200, 300)["median"] == 200
    low, high = reached(100, 200, 300, 500)["interval95"]
    assert 100 <= low < 250 < high <= 500
    half = reached(100, 200, None, None)
    assert half["median"] is None and half["interval95"][1] is None and half["interval95"][0] is not None
    assert reached(100, 200, 300, None)["median"] == 250


def test_a_policy_that_broke_down_never_reaches_a_target():
    random = np.random.default_rng(0)
    learned = [make_run(random, 0.9, "a", seed=seed, curve=((0, 0.0), (900, 0.9))) for seed in range(2)]
    broken = [make_run(random, -1.0, "a", seed=seed, failed="NaN") for seed in range(2, 5)]
    (curve,) = study(learned + broken)["curves"]
    assert (curve["steps_to"]["0.6"]["reached"], curve["steps_to"]["0.6"]["of"]) == (2, 5)
    assert curve["steps_to"]["0.6"]["median"] is None and curve["iqm"][-1][0] == pytest.approx(
        0.27
    )  # of 0, 0, 0, 0.9, 0.9


def test_what_would_settle_it_satisfies_both_tests():
    """Every seed the same: Student's interval has no width, and only McNemar's test is left to convince."""
    wins = {"a": "1111111000", "b": "1111110000"}
    runs = [
        Run(env="pick", encoder=encoder, demonstrations=20, seed=seed, test="plain",
            records=[{"success": win == "1", "steps": 9, "reward": 0.0} for win in wins[encoder]])
        for seed in range(5) for encoder in wins
    ]  # fmt: skip
    found = pair_of(study(runs), "b")
    assert not found["shown"] and found["difference"] == [0.1, 0.1, 0.1]
    assert found["episodes"]["mcnemar_p"] == pytest.approx(2 / 2**5)
    assert found["needed_seeds"] >= 6  # McNemar's p of six such seeds is below 0.05
    assert f"about {found['needed_seeds']} policy seeds a task" in found["words"]


@pytest.mark.parametrize(
    ("count", "said"), [(0, "30,000 environment steps"), (20, "DAgger on 20 demonstrations, 30,0")]
)
def test_a_learner_that_acts_is_told_by_its_steps(tmp_path, count, said):
    random = np.random.default_rng(0)
    runs = [
        make_run(random, rate, name, seed=seed, demonstrations=count, env_steps=30_000 + seed - 1,
                 curve=((0, 0.0), (30_000, rate)))
        for seed in range(3) for name, rate in (("a", 0.9), ("b", 0.4))
    ]  # fmt: skip
    result = study(runs)
    told = pair_of(result, "b", count)["words"]
    assert told.startswith(said) and (count or "demonstrations" not in told)
    write_comparison(tmp_path, result | frame("ppo" if not count else "dagger"), [], [])
    report = (tmp_path / "report.html").read_text()
    assert "<th>learned from<" in report and said in report and (count or "<th>demonstrations<" not in report)
    assert ("Success on training episodes, exploring" if not count else "Success on held-out starts.") in report


def test_a_learner_that_acts_has_its_curve_over_environment_steps(tmp_path):
    lines = [{"env_steps": 1000 * i, "successes": i, "episodes": 10, "wall_s": 1.0} for i in range(11)]
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = success_curve(tmp_path)
    assert curve[3] == (3000, 0.3) and success_curve(tmp_path / "none") == ()
    random = np.random.default_rng(1)
    later = tuple((x + 500, y) for x, y in curve)  # another run, measured elsewhere
    runs = [make_run(random, 0.9, "a", seed=seed, curve=c) for seed, c in enumerate((curve, later))]
    (found,) = study(runs)["curves"]
    assert found["unit"] == STEPS and found["x"][0] == 500 and found["x"][-1] == 10_000
    assert found["steps_to"]["0.6"]["values"] == pytest.approx([6000, 6500])
    assert found["iqm"][-1][0] == pytest.approx(0.975)


def test_a_curve_over_environment_steps_is_of_one_number_of_demonstrations():
    random = np.random.default_rng(1)
    runs = [
        make_run(random, 0.9, "a", seed=seed, demonstrations=count, curve=((100 * count, 0.2), (200 * count, 0.8)))
        for seed in range(2)
        for count in (2, 5)
    ]
    found = study(runs)["curves"]
    assert [(curve["demonstrations"], curve["x"][0], curve["x"][-1]) for curve in found] == [
        (2, 200, 400), (5, 500, 1000),
    ]  # fmt: skip


def test_layers_make_a_curve_of_their_own():
    random = np.random.default_rng(2)
    runs = grid(0.1)
    for layer, rate in (("0", 0.2), ("3", 0.8)):
        runs += [
            make_run(random, rate, f"a@layer={layer}", seed=seed, demonstrations=50, layer=layer, parent="a")
            for seed in range(3)
        ]
    result = study(runs)
    (curve,) = result["layers"]
    assert [point["layer"] for point in curve["points"]] == ["0", "3"]
    assert curve["points"][0]["iqm"][0] < 0.4 < 0.6 < curve["points"][1]["iqm"][0]
    assert {cell["encoder"] for cell in result["cells"]} == {"a", "b", "dead"}


def frame(policy="bc", size=1000):
    """What stands around an analysis in comparison.json."""
    cost = {
        "name": "toto", "layer": 3, "context_frames": 1, "parameters": 1000, "tokens_per_frame": 64, "width": 256,
        "gflops_per_frame": 0.4, "ms_per_frame": [1.0, 2.0, 3.0], "processor_ms_per_frame": 2.0,
    }  # fmt: skip
    more = {"total_parameters": 4321, "head_parameters": 765, "parameters": size}
    return {
        "design": {"tasks": ["pick", "cabinet"], "encoders": ["a", "b", "dead"], "reference": "a",
                   "planned_runs": 99, "shared": {"bc": {"steps": 7}}, "policy": policy},
        "encoders": {"a": cost, "b": {**cost, **more, "name": "mae"}, "dead": {**cost, "parameters": 0}},
        "machine": {"processor": "p", "cores": 2}, "date": "d", "commit": "c",
    }  # fmt: skip


def test_encoders_of_other_sizes_are_told(tmp_path):
    for size, warned in ((1000, False), (1049, False), (1060, True)):
        write_comparison(tmp_path, study(grid(0.25)) | frame(size=size), [], [])
        text = (tmp_path / "report.html").read_text()
        assert "4,321" in text and "765" in text
        assert ("differ by more than 5% (a 1,000, b 1,060)" in text) == warned


def test_the_report_says_the_conclusion_first_and_needs_no_other_file(tmp_path):
    result = study(grid(0.25) + grid(0.25, test="cameras")) | frame()
    write_comparison(tmp_path, result, [("never run", tmp_path / "rollouts.png")], ["toto_robot compare"])
    text = (tmp_path / "report.html").read_text()
    assert text.index("a is ahead") < text.index("<table>") < text.index("data:image/png")
    assert "60 of 99 policies are done" in text and "bc.steps" in text
    assert text.count("data:image/png;base64,") == 5 and "http" not in text
    assert "(one seed)" not in text
    write_comparison(tmp_path, {**result, **study(grid(0.25, seeds=1, tasks=("pick",)))}, [], [])
    assert (tmp_path / "report.html").read_text().count("(one seed)") == 6 + 4  # six cells, four pairs
