"""Mixtures against hand-made numbers and properties; their table against a count over every sample of real runs."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import UserError
from tests.conftest import SAMPLE, assert_error, run
from tests.run.test_resume import batch, start_and_signal
from utils.data.manifest import TRAIN, DatasetSplit, Manifest, Shard
from utils.data.mixture import Mixture, exact_shares, mixture_table, table_csv, table_text
from utils.data.sample_order import SampleOrder


def entry(name: str, rows: int, group: str | None = None, tokens: int | None = None) -> DatasetSplit:
    tokens = 60 * rows if tokens is None else tokens
    return DatasetSplit(
        *(name, TRAIN, name[:2].lower(), group or name),
        *(rows, 0, 10 * rows, 50 * rows, tokens, tokens - rows),
        *(rows, 0, 0, {}, [], [Shard("file", rows, 0, "")]),
    )


ENTRIES = [entry("FR/A", 10, "FR/G"), entry("FR/B", 30, "FR/G"), entry("FR/C", 60, tokens=400)]
WORKED = [
    *(entry("EN/Books", 500), entry("EN/Web", 1500)),
    *(entry("FR/Debates", 300), entry("FR/Theatre", 100), entry("FR/Wikipedia", 600)),
]


def mixture_of(entries: list[DatasetSplit], text: str, folder: Path) -> dict[str, Fraction]:
    """Dataset → share of the samples, as the integer weights have it."""
    (folder / "mixture.yaml").write_text(text)
    mixture = Mixture.of(entries, folder / "mixture.yaml")
    total = sum(mixture.weights)
    names = [entry.dataset for entry in mixture.entries]
    assert sorted([*names, *mixture.left_out]) == sorted(entry.dataset for entry in entries)
    return {name: Fraction(weight, total) for name, weight in zip(names, mixture.weights, strict=True)}


def test_without_a_file_a_dataset_weighs_its_rows(tmp_path: Path) -> None:
    assert Mixture.of(ENTRIES, None) == Mixture(tuple(ENTRIES), (1, 3, 6))
    (tmp_path / "mixture.yaml").write_text("weights: rows")
    assert Mixture.of(ENTRIES, tmp_path / "mixture.yaml") == Mixture.of(ENTRIES, None)


# Shares are parts of 1, by hand.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights: tokens", "6/28 18/28 4/28"),
        ("shares: {FR/G: 0.7}", "7/40 21/40 3/10"),
        ("shares: {FR/A: 1/3}", "1/3 2/9 4/9"),
        ("shares: {FR/A: 1}", "1 0 0"),
        ("shares: {FR/C: 0}", "1/4 3/4 0"),
        ("shares: {FR/G: 1}\npenalties: {FR/A: 3}", "1/2 1/2 0"),
        ("penalties: {FR/C: 1e-1}", "10/46 30/46 6/46"),
        ("penalties: {FR/G: 0.5, FR/A: 0.5}", "5/155 30/155 120/155"),
        ("weights: tokens\nshares: {FR/A: 0.5}\npenalties: {FR/C: 4.5}", "1/2 1/4 1/4"),
        ("languages: {fr: 3}", "1/10 3/10 6/10"),
    ],
)
def test_shares_by_hand(text: str, expected: str, tmp_path: Path) -> None:
    named = zip(("FR/A", "FR/B", "FR/C"), map(Fraction, expected.split()), strict=True)
    assert mixture_of(ENTRIES, text, tmp_path) == {name: share for name, share in named if share}


def test_the_worked_example(tmp_path: Path) -> None:
    from utils.data import mixture

    lines = [line.split("#")[0] for line in mixture.__doc__.splitlines() if line.startswith("    ")]
    shares = mixture_of(WORKED, "\n".join(line.strip() for line in lines), tmp_path)
    halves = {"FR/Theatre": "1/14", "FR/Wikipedia": "3/14", "FR/Debates": "3/14", "EN/Books": "3/10", "EN/Web": "1/5"}
    assert shares == {name: Fraction(share) for name, share in halves.items()}


def test_languages_leave_out_and_add_up(tmp_path: Path) -> None:
    assert mixture_of(WORKED, "languages: {fr: 0, en: 1}", tmp_path) == {"EN/Books": 0.25, "EN/Web": 0.75}
    across = [
        replace(chosen, group="Books") if chosen.dataset in ("EN/Books", "FR/Wikipedia") else chosen
        for chosen in WORKED
    ]
    shares = mixture_of(across, "languages: {fr: 1, en: 3}\nshares: {Books: 0.25}", tmp_path)
    # 500 and 600 rows are Books: 5/44 and 6/44; Wikipedia's comes off the French quarter, Books' off the English rest
    assert (shares["EN/Books"], shares["EN/Web"]) == (Fraction(5, 44), Fraction(3, 4) - Fraction(5, 44))
    assert shares["FR/Debates"] == 3 * shares["FR/Theatre"] and sum(shares.values()) == 1


def test_the_samples_mixture_fits_the_sample(data_dir: Path) -> None:
    mixture = Mixture.of(Manifest.load(data_dir).select(TRAIN), SAMPLE / "mixture.yaml")
    weights = {entry.dataset: weight for entry, weight in zip(mixture.entries, mixture.weights, strict=True)}
    assert weights == {"FR/Cuisine": 2, "FR/Marche": 1, "FR/Bibliotheque": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FR/A: 2\nFR/C: 1", r"unknown section FR/A, FR/C, .* weights, shares, .* `shares: \{FR/A: 2, FR/C: 1\}`"),
        ("share: {FR/A: 1}", "unknown section share, the sections are weights, shares, penalties, languages$"),
        ("shares: {FR/X: 1}", "FR/X is not in the data, which holds FR/A, FR/B, FR/C, FR/G"),
        ("penalties: {FR/X: 1}", "FR/X is not in the data"),
        ("shares: {FR/A: -1}", "FR/A must have a number of at least 0"),
        ("shares: {FR/A: .nan}", "at least 0"),
        ("shares: {FR/A: .inf}", "at least 0"),
        ("shares: {FR/A: true}", "at least 0"),
        ("shares: {FR/A: 1/0}", "at least 0"),
        ("shares: {FR/A:}", "at least 0"),
        ("shares: 3", "shares must map"),
        ("shares:", "shares must map"),
        ("shares: {FR/A: 0.9, FR/C: 0.2}", "sum to 1.1, which is more than 1"),
        ("shares: {FR/G: 0.9, FR/C: 0.05}", "sum to 0.95, and no other dataset can take the rest, make it 1"),
        ("shares: {FR/G: 0, FR/C: 0}", "sum to 0, and no other"),
        ("shares: {FR/A: 0.1, FR/G: 0.1}", "FR/A has a share twice"),
        ("shares: {FR/A: 0.1}\npenalties: {FR/A: 0.1}", "FR/A has a share and a penalty"),
        ("penalties: {FR/A: 0}", "above 0; to leave it out give it the share 0"),
        ("weights: words", "rows or tokens, not 'words'"),
        ("languages: {fr: 1, en: 1}", "languages names en, the data holds 'fr'"),
        ("languages: {fr: 0}", "no language"),
        ("- FR/A", "must hold one or more of the sections"),
        ("", "must hold one or more of the sections"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_mixture_is_one_clear_error(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        mixture_of(ENTRIES, text, tmp_path)
    assert str(error.value).startswith(f"--mixture {tmp_path}/mixture.yaml: ") and "\n" not in str(error.value)


def test_contradictions_between_shares_and_languages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of language 'en' sum to 0.6, which is more than 0.5"):
        mixture_of(WORKED, "languages: {fr: 1, en: 1}\nshares: {EN/Web: 0.6}", tmp_path)
    with pytest.raises(UserError, match="lacks 'fr', which the data holds; 0 leaves it out"):
        mixture_of(WORKED, "languages: {en: 1}", tmp_path)


# Properties

parts = st.fractions(0, 1, max_denominator=100)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[DatasetSplit], dict[str, dict[str, Fraction]]]:
    """Up to nine datasets of two languages in groups, and sections that do not contradict themselves."""
    size = draw(st.integers(2, 8))
    entries = [entry("FR/0", draw(st.integers(1, 3000)))] + [
        entry(f"{draw(st.sampled_from(['FR', 'EN']))}/{i}", draw(st.integers(1, 3000)), draw(st.sampled_from("gh")))
        for i in range(1, size)
    ]
    names = [chosen.dataset for chosen in entries]
    languages = {language: draw(st.integers(1, 5)) for language in {chosen.language for chosen in entries}}
    languages = draw(st.sampled_from([{}, languages]))
    part = {language: Fraction(value, sum(languages.values())) for language, value in languages.items()}
    # the first of each language has no share, the others at most 1/9 of their language's part each
    first = {chosen.language: chosen.dataset for chosen in reversed(entries)}
    shared = [chosen for chosen in entries if chosen.dataset not in first.values() and draw(st.booleans())]
    shares = {chosen.dataset: draw(parts) * part.get(chosen.language, 1) / 9 for chosen in shared}
    penalised = [name for name in (*names, "g", "h") if name not in shares and draw(st.booleans())]
    known = {name for chosen in entries for name in (chosen.dataset, chosen.group)}
    penalties = {name: draw(st.fractions(Fraction(1, 4), 4, max_denominator=8)) for name in penalised if name in known}
    return entries, {
        "shares": shares,
        "penalties": penalties,
        "languages": {k: Fraction(v) for k, v in languages.items()},
    }


@given(mixtures(), st.sampled_from(["rows", "tokens"]))
def test_shares_keep_what_the_sections_promise(drawn, unit):
    entries, sections = drawn
    shares = exact_shares(entries, unit, **sections)
    assert sum(shares.values()) == 1 and shares.keys() == {chosen.dataset for chosen in entries}
    assert shares.items() >= sections["shares"].items()
    for one, value in sections["languages"].items():
        of_language = sum(shares[chosen.dataset] for chosen in entries if chosen.language == one)
        assert of_language * sum(sections["languages"].values()) == value
    per_weight = defaultdict(set)
    for chosen in entries:
        if chosen.dataset not in sections["shares"]:
            weight = Fraction(getattr(chosen, unit))
            for name in {chosen.dataset, chosen.group}:
                weight *= sections["penalties"].get(name, 1)
            per_weight[chosen.language if sections["languages"] else None].add(shares[chosen.dataset] / weight)
    assert all(len(ratios) == 1 for ratios in per_weight.values()), "not in proportion to the weights"


@settings(max_examples=40, deadline=None)
@given(mixtures(), st.integers(0, 2**32), st.integers(1, 3))
def test_shares_achieved_over_whole_blocks_are_those_aimed_at(tmp_path_factory, drawn, seed, blocks):
    entries, sections = drawn
    path = tmp_path_factory.mktemp("mixture") / "mixture.yaml"
    written = {key: {name: str(value) for name, value in values.items()} for key, values in sections.items()}
    path.write_text(yaml.safe_dump(written))
    mixture = Mixture.of(entries, path)
    order = SampleOrder(seed, tuple(chosen.rows for chosen in mixture.entries), mixture.weights)
    end = 0
    for done in range(1, blocks + 1):
        end = order.block(end)[1]
        if end > 20_000:
            return
        seen = Counter(order.locate(i).dataset for i in range(end))
        counts = [seen[index] for index in range(len(mixture.entries))]
        aimed = exact_shares(entries, "rows", **sections)
        for row, count in zip(mixture_table(mixture, 10 * end, counts), counts, strict=True):
            assert abs(count - end * aimed[row.dataset]) <= 1
            assert abs(row.achieved_share - aimed[row.dataset]) <= done / end + 1e-12
            assert row.samples == count and row.passes == count / row.rows


def test_weights_of_hundreds_of_groups_stay_small(tmp_path: Path) -> None:
    groups = [f"G{i}" for i in range(400)]
    entries = [entry(f"FR/{group}-{j}", 10**8 + 997 * i + j, group) for i, group in enumerate(groups) for j in (0, 1)]
    shares = mixture_of(entries, yaml.safe_dump({"shares": dict.fromkeys(groups, "1/400")}), tmp_path)
    assert sum(Mixture.of(entries, tmp_path / "mixture.yaml").weights) < 2**53
    assert sum(Mixture.of(entries, tmp_path / "mixture.yaml").weights) < 2**53
    for i, group in enumerate(groups):
        rows = [10**8 + 997 * i + j for j in (0, 1)]
        for j in (0, 1):
            exact = Fraction(rows[j], 400 * sum(rows))
            assert abs(shares[f"FR/{group}-{j}"] - exact) < Fraction(1, 10**15)


def test_names_are_text_whatever_yaml_takes_them_for(tmp_path: Path) -> None:
    names = ("NO/A", "on", "2024-01-01", "1e3", "yes", "null", "0x10")
    entries = [entry(name, 10) for name in names]
    given = "shares: {NO/A: 0.1, on: 0.2, 2024-01-01: 0.1, 1e3: 0.1, yes: 0.1, null: 0.3, 0x10: 0.1}"
    assert mixture_of(entries, given, tmp_path) == {
        name: Fraction(share, 10) for name, share in zip(names, (1, 2, 1, 1, 1, 3, 1), strict=True)
    }
    two = [entry("NO/A", 10), entry("EN/A", 10)]
    assert mixture_of(two, "languages:\n  no: 3\n  en: 1\n", tmp_path) == {"NO/A": 0.75, "EN/A": 0.25}
    assert mixture_of(two, "penalties: &p {NO/A: 0.5}\nshares: {}\n", tmp_path)["NO/A"] == Fraction(1, 3)
    with pytest.raises(UserError, match=r"mixture\.yaml: EN/A is there twice"):
        mixture_of(two, "penalties: {EN/A: 0.5, NO/A: 1, EN/A: 2}", tmp_path)


# The table


def test_the_table_adds_up_and_reads_well() -> None:
    mixture = Mixture(tuple(WORKED), (3, 2, 3, 1, 3))
    text = table_text(mixture_table(mixture, 12_000))
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and [line.split()[0] for line in lines[-3:]] == ["all"] * 3
    assert (
        " ".join(lines[0].split()) == "dataset language documents turns words tokens targets rows share samples passes"
    )
    assert " ".join(lines[2].split()) == "EN/Web en 1,500 15,000 75,000 90,000 88,500 1,500 16.67% 2,000 1.33"
    assert " ".join(lines[-3].split()) == "all of en 2,000 20,000 100,000 120,000 118,000 2,000 41.67% 5,000 2.50"
    assert lines[-1].split()[1:] == [
        "3,000",
        "30,000",
        "150,000",
        "180,000",
        "177,000",
        "3,000",
        "100.00%",
        "12,000",
        "4.00",
    ]
    made = table_text(mixture_table(mixture, 12_000, (9, 0, 0, 1, 0))).splitlines()
    assert made[0].split()[-4:] == ["share", "achieved", "samples", "passes"]
    assert made[1].split()[-4:] == ["25.00%", "90.00%", "9", "0.02"]
    assert made[-1].split()[-4:] == ["100.00%", "100.00%", "10", "0.00"]
    assert "all of" not in table_text(mixture_table(Mixture(tuple(ENTRIES), (1, 3, 6)), 100))


@given(st.lists(st.integers(1, 10**9), min_size=5, max_size=5), st.integers(1, 10**15))
def test_planned_samples_lose_none(weights, planned):
    table = mixture_table(Mixture(tuple(WORKED), tuple(weights)), planned)
    assert sum(row.planned_samples for row in table) == planned
    for row, weight in zip(table, weights, strict=True):
        assert abs(row.planned_samples - Fraction(planned * weight, sum(weights))) < 1


def test_the_csv_says_what_the_table_does() -> None:
    table = mixture_table(Mixture(tuple(WORKED), (3, 2, 3, 1, 3)), 12)
    read = list(csv.DictReader(table_csv(table).splitlines()))
    assert [row["dataset"] for row in read] == [chosen.dataset for chosen in WORKED]
    assert {row["samples"] + row["achieved_share"] + row["passes"] for row in read} == {""}
    assert [int(row["planned_samples"]) for row in read] == [3, 2, 3, 1, 3]


# Real runs


@pytest.fixture(scope="module")
def both_languages(data_dir: Path, other_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The French and the English sample in one data folder."""
    folder = shutil.copytree(data_dir, tmp_path_factory.mktemp("data") / "both")
    shutil.copytree(other_data_dir, folder, dirs_exist_ok=True)
    manifests = [Manifest.load(source) for source in (data_dir, other_data_dir)]
    replace(manifests[0], splits=[split for manifest in manifests for split in manifest.splits]).save(folder)
    return folder


def read_table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "mixture.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_achieved(run_dir: Path, steps: int, samples_per_step: int) -> None:
    """Compares mixture.csv with a count over every sample of the run."""
    record = yaml.safe_load((run_dir / "run.yaml").read_text(encoding="utf-8"))
    weights = record["identity"]["mixture"]
    manifest = json.loads((Path(record["options"]["data_dir"]) / "manifest.json").read_text(encoding="utf-8"))
    rows = {split["dataset"]: split["rows"] for split in manifest["splits"] if split["split"] == "train"}
    order = SampleOrder(1337, tuple(rows[name] for name in weights), tuple(weights.values()))
    names = list(weights)
    samples = steps * samples_per_step
    counts = Counter(names[order.locate(i).dataset] for i in range(samples))
    table = read_table(run_dir)
    assert [row["dataset"] for row in table] == names
    for row in table:
        name = row["dataset"]
        assert int(row["samples"]) == counts[name]
        assert float(row["achieved_share"]) == pytest.approx(counts[name] / samples)
        assert float(row["passes"]) == pytest.approx(counts[name] / rows[name])
        assert float(row["share"]) == pytest.approx(weights[name] / sum(weights.values()))


def test_the_table_of_a_run_that_was_interrupted(
    both_languages: Path, pretrain_arguments: list[object], tmp_path: Path
) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("languages: {fr: 1, en: 1}\nshares: {EN/Office: 0.5}\npenalties: {FR/Cuisine: 0.5}\n")
    arguments = [*pretrain_arguments, "--data_dir", both_languages, "--mixture", mixture, *batch(2)]
    run_dir = tmp_path / "run"
    assert start_and_signal(arguments, run_dir, 3, signal.SIGTERM, processes=2) == 75
    planned = read_table(run_dir)
    assert {row["samples"] for row in planned} == {""} and sum(int(row["planned_samples"]) for row in planned) == 144
    assert {row["dataset"]: float(row["share"]) for row in planned}["EN/Office"] == 0.5
    done = run("pretrain.py", *arguments, "--out_dir", run_dir, processes=2)
    check_achieved(run_dir, 12, 12)
    assert [row["planned_samples"] for row in read_table(run_dir)] == [row["planned_samples"] for row in planned]
    for title in ("mixture, planned:", "mixture, samples made:"):
        assert done.stdout.count(title) == 1 and title in (run_dir / "training_log.out").read_text()
    assert "all of fr" in done.stdout and f"left out by {mixture}: EN/Garden, EN/Station" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("done: ")


def test_the_table_of_a_run_that_stopped_early(pretrain_arguments: list[object], tmp_path: Path) -> None:
    options = ["--early_stopping", 1, "--learning_rate", 1e-30, "--batch_size", 8, "--micro_batch_size", 4]
    done = run("pretrain.py", *pretrain_arguments, *options, "--out_dir", tmp_path)
    assert "1 validations without improvement" in done.stdout
    check_achieved(tmp_path, 4, 8)
    assert sum(int(row["planned_samples"]) for row in read_table(tmp_path)) == 96


def test_samples_of_skipped_steps_count(pretrain_arguments: list[object], tmp_path: Path) -> None:
    options = ["--learning_rate", 1e30, "--max_nonfinite_steps", 99, "--enable_validation", "false"]
    arguments = [*pretrain_arguments, *options, "--batch_size", 8, "--micro_batch_size", 4, "--out_dir", tmp_path]
    done = run("pretrain.py", *arguments, check=False)
    assert done.returncode == 2 and "skipped: loss" in done.stdout
    check_achieved(tmp_path, 12, 8)


def test_a_contradiction_ends_the_command(pretrain_arguments: list[object], tmp_path: Path) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("shares: {FR/Cuisine: 1.5}\n")
    done = run("pretrain.py", *pretrain_arguments, "--mixture", mixture, "--out_dir", tmp_path / "run", check=False)
    assert_error(done, 2, f"--mixture {mixture}: the shares sum to 1.5, which is more than 1")
    assert not (tmp_path / "run").exists()
