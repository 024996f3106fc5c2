"""docs/compile_report: every base run on every pod, and what is to hold of all of them."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    """scripts/compile_report.py as a module."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "scripts/compile_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reports(script):
    return json.loads(script.REPORT.read_text())


def test_every_run_is_there_on_every_pod(script, reports):
    found = [(pathlib.Path(r["gin_file"]).stem, (r["topology"], r["slices"])) for r in reports]
    assert found == [(model, pod) for pod in script.PODS for model in script.MODELS]
    assert not any(report["quick"] for report in reports)


def test_every_run_fits_and_sums_no_scores_in_its_loop(reports):
    for report in reports:
        assert report["fits"], report["gin_file"]
        # On a TPU7x the gradients of a layer's weights are summed whole, as the page says.
        largest = 2**23 if report["topology"].startswith("tpu7x") else 2**20
        assert report["largest_all_reduced_in_a_loop"] <= largest, report["gin_file"]


def test_the_page_is_made_of_the_figures(script, reports):
    assert script.REPORT.with_suffix(".md").read_text() == script.page(reports)
