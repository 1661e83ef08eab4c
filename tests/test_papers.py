"""Pages name their papers once with a link, relatives are what their tables state, and prose is plain English."""
import ast
import json
import re
import statistics
from pathlib import Path

import pytest
from test_lessons import LESSONS, RELATIVES, cells_of, code_of, prose_of, source

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
FAMILY = ROOT / "nbs/2_relatives/00_family_tree.ipynb"


def test_every_knob_of_the_family_tree_is_read_by_code() -> None:
    tree = ast.parse("\n".join(code_of(FAMILY)))
    knobs = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Knobs")
    names = {field.target.id for field in knobs.body if isinstance(field, ast.AnnAssign)}
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert names and not names - read, f"only labels of the table: {names - read}"


def test_the_family_tree_compares_each_relative_with_its_module() -> None:
    code = "\n".join(code_of(FAMILY))
    missing = [name for name in ("isd", "ressl", "moco_v2", "co2", "sce", "simclr") if f'"{name}"' not in code]
    assert not missing and "has no module" not in prose_of(FAMILY), missing


BIBLIOGRAPHY = ROOT / "nbs/notation.ipynb"
PAPERS = re.compile(r"\]\((https?://(?:arxiv\.org|(?:dx\.)?doi\.org|openreview\.net|(?:proceedings|papers)\.[^/]+)/[^)\s]+)\)")
NOT_CITED: dict[str, str] = {}  # links that need no entry in the bibliography, with a reason each
METHODS = {
    "MoCo": ("1911.05722", "2003.04297"), "SimCLR": ("2002.05709",), "BYOL": ("2006.07733",),
    "SimSiam": ("2011.10566",),
    "SwAV": ("2006.09882",), "CO2": ("2010.02217",), "CompRess": ("2010.14713",), "PIRL": ("1912.01991",),
    "InvP": ("2010.11694",), "ReSSL": ("2107.09282",), "SCE": ("2111.14585",), "DINO": ("2104.14294",),
    "ISD|poster|the paper": ("2012.09259",),
}
OF_PAPERS = [p for p in NOTEBOOKS if p.parent.name in ("1_isd", "2_relatives", "3_claims", "gpu")]


def test_every_paper_that_a_page_links_stands_in_the_bibliography() -> None:
    known = set(PAPERS.findall(prose_of(BIBLIOGRAPHY))) | set(NOT_CITED)
    missing = {link: path.name for path in NOTEBOOKS for link in PAPERS.findall(prose_of(path)) if link not in known}
    assert len(known) > 20 and not missing, f"no entry in notation.ipynb: {missing}"


def test_every_entry_of_the_bibliography_is_linked() -> None:
    part = prose_of(BIBLIOGRAPHY).partition("\n## References")[2].partition("\nThe names in the tables")[0]
    entries = [line for line in part.splitlines() if line.startswith("* ")]
    assert entries and not [line for line in entries if not PAPERS.search(line)]


@pytest.mark.parametrize("path", OF_PAPERS, ids=lambda p: p.stem)
def test_a_page_that_names_methods_links_their_papers_or_has_references(path: Path) -> None:
    text = prose_of(path)
    if re.search(r"^## References$", text, re.M):
        assert PAPERS.search(text.partition("\n## References")[2]), "references are links"
        return
    words = re.sub(r"`[^`]*`", "", text)
    named = [name for name in METHODS if re.search(rf"\b(?:{name})\b", words)]
    missing = [name for name in named if not any(paper in text for paper in METHODS[name])]
    assert not missing, f"named without a link or references: {missing}"


def test_the_glossary_has_the_terms_of_papers() -> None:
    glossary = prose_of(BIBLIOGRAPHY).partition("\n## Glossary")[2].partition("\n## References")[0]
    rows = [line for line in glossary.splitlines() if line.startswith("| ")]
    assert rows[0] == "| term | meaning here | in the paper | name in code |"
    assert sum(bool(row.split(" |")[2].strip()) for row in rows[1:]) > 10


@pytest.mark.parametrize("path", RELATIVES, ids=lambda p: p.stem)
def test_a_relative_begins_with_its_box(path: Path) -> None:
    first = source(cells_of(path, "markdown")[0])
    rows = ("You will be able to", "You need to know", "Minutes", "Papers")
    missing = [row for row in rows if f"| **{row}** | " not in first]
    assert not missing, f"the box has no row {missing}"


CLAIMS = sorted((ROOT / "nbs/3_claims").glob("*.ipynb"))


@pytest.mark.parametrize("path", [*RELATIVES, *CLAIMS], ids=lambda p: p.stem)
def test_lessons_are_links_on_relatives_and_claims(path: Path) -> None:
    text = re.sub(r"\[[^\]]*\]\([^)]*\)", "", prose_of(path))
    assert not re.findall(r"\b[Ll]essons? \d", text)


def test_lesson_7_states_what_its_teachers_reach() -> None:
    text = prose_of(ROOT / "nbs/1_isd/7_collapse.ipynb")
    runs = [json.loads(p.read_text()) for p in (ROOT / "results/collapse/digits").glob("*.json")]
    teachers = {r["seed"]: r["curve"][-1]["knn20_teacher"] for r in runs if r["case"] == "recipe"}
    pixels = {r["seed"]: r["knn20"] for r in runs if r["case"] == "raw_pixels"}
    above = sum(teachers[seed] > pixels[seed] for seed in pixels)
    cells = cells_of(ROOT / "nbs/1_isd/7_collapse.ipynb", "code")
    printed = "".join("".join(o.get("text", [])) for c in cells for o in c["outputs"])
    mean = sum(teachers.values()) / 3
    assert f"ISD's teachers: 20-NN {mean:.3f}, above pixels with {above} of 3 seeds" in printed
    outputs = [o for c in cells_of(CLAIMS[0], "code") for o in c["outputs"]]
    claim = "".join("".join(o.get("text", [])) for o in outputs).partition("\nisd: ")[2].partition("\n")[0]
    assert "-0.3 points on average" in claim
    assert "(../3_claims/01_teacher_and_student.ipynb) ISD's teacher is level within 0.6 points" in text


def test_lesson_1_turns_every_operation_of_the_strong_view() -> None:
    control = next(cell for cell in code_of(LESSONS[0]) if "interactive_figure(draw" in cell)
    names = ("brightness", "contrast", "saturation", "hue", "crop", "blur", "grey", "flip")
    assert all(f'"{name}": lambda' in control for name in names)


def test_the_shipped_networks_are_shown() -> None:
    page = prose_of(ROOT / "nbs/gpu/cifar10.ipynb")
    assert 'load_encoder("shipped:cifar10")' in page and "results/figures/cifar10_neighbours.png" in page
    assert any("a run of yours: load_encoder(" in cell for cell in code_of(ROOT / "nbs/1_isd/8_evaluation.ipynb"))
    assert "shipped:digits" in "\n".join(code_of(ROOT / "nbs/2_relatives/08_compress.ipynb"))


SHIPPED = sorted((ROOT / "isd_nb/shipped").glob("*.safetensors"))


@pytest.mark.parametrize("weights", SHIPPED, ids=lambda p: p.stem)
def test_the_card_of_a_shipped_encoder_is_made_from_its_json(weights: Path) -> None:
    place: dict[str, object] = {"__file__": str(ROOT / "scripts/shipped_cards.py"), "__name__": "shipped_cards"}
    exec((ROOT / "scripts/shipped_cards.py").read_text(), place)
    made = place["shipped_card"](weights)
    assert weights.with_suffix(".md").read_text() == made, "run python scripts/shipped_cards.py"
    assert f"shipped:{weights.stem}" in made and json.loads(weights.with_suffix(".json").read_text())["note"] in made


def test_the_shipped_digits_are_as_good_as_todays_runs() -> None:
    shipped = json.loads((ROOT / "isd_nb/shipped/digits.json").read_text())
    runs = [json.loads(path.read_text()) for path in (ROOT / "results").glob("digits-[0-9].json")]
    assert len(runs) == 3 and "One run of an earlier setting" in shipped["note"]
    assert shipped["knn20_teacher"] >= statistics.median(run["knn20_teacher"] for run in runs)


# Things do not say, ask, tell, answer, look or find; users do. Nouns such as "an answer" are fine.
TALKING = re.compile(
    r"\b(?:whom|nobody|somebody|anybody|everybody|whoever says|\w+ times as (?:slow|fast))\b"
    r"|`[\w.]+`\s+(?:says|asks|tells|answers|looks|finds|thinks)\b"
    r"|\b(?:file|files|page|table|network|net|intervals?|card|recipe|code|loss|label|bank|run|it|which)\s+(?:says?|tells?|thinks?)\b"
    r"|\bdoes not (?:say|tell)\b|\b(?:can|cannot|could) (?:not )?be told\b|\bsays? of (?:itself|themselves)\b"
    r"|\bis said\b|\b(?:is|are|was|were) asked (?:for|about)\b|\basked (?:for|again)\b|\w+ say,", re.I)


@pytest.mark.parametrize("path", [*NOTEBOOKS, *sorted((ROOT / "book/pages").glob("*.md")), ROOT / "README.md"],
                         ids=lambda p: p.relative_to(ROOT).as_posix())
def test_english_of_pages(path: Path) -> None:
    text = re.sub(r"^```.*?^```|^ {4}.*?$", "", prose_of(path), flags=re.S | re.M)
    found = [m[0] for m in TALKING.finditer(text)]
    assert not found, f"things that talk: {found}"


@pytest.mark.parametrize("sentence", [
    "`recipe.predictor` says", "What a file says of itself", "Where a file says which one it is", "does not say it",
    "An interval that holds zero does not tell two sides apart", "--public for everybody", "cannot be told apart"])
def test_sentences_of_the_kind_are_found(sentence: str) -> None:
    assert TALKING.search(sentence)
