import dataclasses
import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic import PROVENANCE

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.labelling import METHOD_NAMES
from pipeline_lib.report import page as pages
from pipeline_lib.report.atlas import atlas
from pipeline_lib.report.blocks import GalleryRow, Picture
from pipeline_lib.report.collect import collect, expected_figures
from pipeline_lib.report.page import render_page, script_json, write_report
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.sections import comparison, meaning, truth
from pipeline_lib.report.sheet import SIDE, sheet
from pipeline_lib.report.style import PALETTE
from pipeline_lib.retrieval_truth import NEIGHBOURS
from pipeline_lib.roles import NO_ROLE, ONE_CATEGORY
from pipeline_lib.validation import SCORES

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"
HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>\"'&$x$"


class Outline(HTMLParser):
    """Elements of a page with their attributes, and the texts of its data scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.ids, self._open = [], [], None
        self.data = {}
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        self._open = found.get("id") if tag == "script" else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, text):
        if self._open:
            self.data[self._open.removeprefix("data-")] = text


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page.read_text("utf-8"))


def test_sections_stand_in_the_order_of_the_stages(outline):
    sections = [found["id"] for tag, found in outline.elements if tag == "section"]
    assert sections == [
        "overview", "manifest", "features", "contributions", "maps", "scores", "applications",
        "ablation", "retrieval", "heatmaps", "segmentation", "spurious", "codes", "provenance",
    ]  # fmt: skip


def test_every_score_that_is_held_against_a_truth_has_its_words():
    assert set(truth._SCORES) == set(SCORES)


def test_the_number_of_carriers_is_that_of_the_comparison(run):
    told = run["comparison"].assign(carriers=range(len(run["comparison"])))
    changed = dataclasses.replace(run, tables=dict(run.tables) | {"comparison": told})
    section = meaning.scores_section(changed)
    best = next(block for block in section.blocks if block.name == "best-components").data
    wanted = told.set_index(["model", "feature"])["carriers"]
    pairs = zip(best["model"], best["feature"], strict=True)
    assert best["carrying"].tolist() == [wanted[pair] for pair in pairs]


def compared(run, ids):
    """The blocks that hold models side by side, of a run whose models have these ids."""
    config = dict(run.config) | {"models": {name: {"id": model} for name, model in ids.items()}}
    blocks = comparison.comparison_blocks(dataclasses.replace(run, config=config))
    return {block.name: block for block in blocks}


def test_models_stand_beside_the_clip_wherever_it_is_listed(run):
    ids = {"deit": "timm:x", "swin": "timm:y", "clip-small": "open_clip:z/t"}
    blocks = compared(run, ids)
    assert [panel.title for panel in blocks["counterparts"].panels] == ["deit", "swin"]
    assert set(blocks["counterparts"].data["other_model"]) == {"clip-small"}
    tops = blocks["top-counterparts"]
    assert {cell.model for cell in tops.data["top"]} == {"clip-small"}
    assert [field.title for field in tops.fields] == [
        "feature", "top component of clip-small", "deit", "alike", "swin", "alike",
    ]  # fmt: skip


def test_of_several_clips_each_has_its_rows_and_without_one_the_first_model(run):
    ids = {"deit": "timm:x", "swin": "open_clip:y/t", "clip-small": "open_clip:z/t"}
    tops = compared(run, ids)["top-counterparts"]
    assert list(dict.fromkeys(tops.data["model"])) == ["swin", "clip-small"]
    own = tops.data[tops.data["model"] == "swin"]
    assert (own["swin"] == "–").all() and own["swin-similarity"].isna().all()
    assert {cell.model for cell in own["clip-small"]} == {"clip-small"}
    none = compared(run, dict.fromkeys(ids, "timm:x"))["top-counterparts"]
    assert {cell.model for cell in none.data["top"]} == {"deit"}


def test_a_run_of_one_model_shows_its_own_components_beside_each_other(run, one_model):
    alone = collect(one_model(), root=run.root)
    own = {
        name: table[table["model"] == "clip-small"]
        for name in ("comparison", "counterparts", "similarity")
        for table in [alone[name]]
    }
    alone = dataclasses.replace(alone, tables=dict(alone.tables) | own)
    assert [block.name for block in comparison.comparison_blocks(alone)] == ["similarity"]
    near = atlas(alone, PictureBook(run.root, run.folders, run["manifest"]))["models"][0]
    assert {row[0] for part in near["components"] for row in part["near"]} >= {"clip-small"}


def test_ids_are_unique(outline):
    assert len(outline.ids) == len(set(outline.ids))


def test_nothing_points_outside(outline, page):
    for tag, found in outline.elements:
        for name in ("src", "href", "action", "xlink:href"):
            target = found.get(name) or ""
            inside = not target or target.startswith(("#", "data:", "../", "pictures.zip"))
            assert inside, f"<{tag} {name}={target!r}>"
    assert "@import" not in page.read_text("utf-8")


def test_links_to_tables_lead_to_files(outline, page):
    links = [found.get("href", "") for _, found in outline.elements]
    links = [link for link in links if link.startswith("..")]
    assert len(links) > 20
    assert all((page.parent / link).resolve().is_file() for link in links)


def test_every_figure_and_gallery_is_captioned(outline, page):
    blocks = re.findall(
        r'<div class="block (figure|gallery|readings|atlas|tree)"', page.read_text("utf-8")
    )
    captions = [found for tag, found in outline.elements if found.get("class") == "caption"]
    assert len(blocks) >= 12 and len(captions) >= len(blocks)


def test_every_picture_asked_for_is_embedded(outline):
    wanted = {found["data-picture"] for _, found in outline.elements if "data-picture" in found}
    images = json.loads(outline.data["images"])
    cards = json.loads(outline.data["atlas"])["models"]
    for part in (part for model in cards for part in model["components"]):
        wanted |= {*part["images"], *(one["image"] for one in part["maps"])}
    assert wanted == set(images)
    assert all(uri.startswith("data:image/webp;base64,") for uri, _ in images.values())


def test_pictures_lie_beside_the_page_at_full_size(outline, page, folder, run):
    with zipfile.ZipFile(page.parent / "pictures.zip") as archive:
        names = archive.namelist()
        listed = pd.read_csv(archive.open("pictures.csv"))
        inside = {name for name in names if name.startswith("images/")}
        for name in inside:
            dataset, path = name.removeprefix("images/").split("/", 1)
            original = folder / "world" / dataset / path
            assert archive.read(name) == original.read_bytes()
        best = archive.read("segmentation/deit/world/best.png")
    original = folder / "applications/segmentation/deit/world/best.png"
    assert best == original.read_bytes()
    assert len(names) == len(set(names)) and set(listed["file"]) <= set(names)
    assert len({name for name in names if name.startswith("heatmaps/")}) == 18
    parts = set(listed["part of the page"])
    assert {"Images found", "Token heat maps", "Card of a component"} <= parts
    found = listed[listed["part of the page"] == "Images found"]
    assert set(found["right"].dropna().astype(str)) == {"True", "False"}
    assert {f"sheets/retrieval-examples/{model}.webp" for model in run.models} <= set(names)
    assert any(found.get("href") == "pictures.zip" for _, found in outline.elements)


def test_a_sheet_marks_what_is_right_and_what_is_wrong():
    pictures = {"small": Image.new("RGB", (64, 64), "white"), "wide": Image.new("RGB", (512, 256))}
    row = GalleryRow("a title", [Picture("small", "", True), Picture("wide", "", False)], "", None)
    drawn = np.asarray(sheet([row, row], pictures.__getitem__))
    assert drawn.shape[1] > 2 * SIDE and drawn.shape[0] > 2 * SIDE
    for role in ("c3", "c4"):
        tone = [int(PALETTE[role][0][i : i + 2], 16) for i in (1, 3, 5)]
        assert (drawn == tone).all(axis=2).sum() > 2 * 4 * 256  # frames on both rows
    assert not (drawn[:, : SIDE + 12] == [186, 77, 0]).all(axis=2).any()  # the first is right


def test_the_same_run_gives_the_same_archive(run, page, tmp_path):
    other = write_report(run, tmp_path).parent / "pictures.zip"
    assert other.read_bytes() == (page.parent / "pictures.zip").read_bytes()


def test_a_model_opens_from_the_representation_to_the_tokens(run):
    """Shares of the parts of a part add up to its own, at every level and for every feature."""
    tree = next(block for block in render_page(run).blocks if block.kind == "tree")
    depth = 0

    def check(branch, level):
        nonlocal depth
        depth = max(depth, level)
        for name, share in branch.shares.items() if branch.children else ():
            below = [child.shares[name] for child in branch.children if name in child.shares]
            assert not below or sum(below) == pytest.approx(share, abs=1e-9), branch.title
        for child in branch.children:
            check(child, level + 1)

    for branch in tree.tabs.values():
        check(branch, 0)
        assert branch.shares["colour"] == pytest.approx(1.0)
    assert depth == 4  # representation, stage, block, head, tokens
    titles = {leaf.title for leaf in leaves(tree.tabs["deit"])}
    assert {"object", "background", "no patch", "stem", "bias"} <= titles


def leaves(branch):
    """Branches that do not open further."""
    if not branch.children:
        return [branch]
    return [leaf for child in branch.children for leaf in leaves(child)]


def test_rejected_files_are_listed_with_their_reasons(page):
    html = page.read_text("utf-8")
    assert "images/broken.jpg" in html and "the file is truncated" in html


def test_the_page_is_small(page):
    assert page.stat().st_size < 2_000_000


def test_static_figures_lie_beside_the_page(page, run):
    drawn = {path.stem for path in (page.parent / "figures").glob("*.svg")}
    where_known = {"heat-on-object", "validation", "reconstruction", "counterparts", "similarity"}
    assert set(expected_figures_of(run)) | where_known == drawn
    for path in (page.parent / "figures").glob("*.svg"):
        ElementTree.parse(path)


def expected_figures_of(run):
    from synthetic import config

    return expected_figures(config(run.root.parent))


def test_every_figure_has_a_caption_for_snakemakes_report(run):
    for name in (*expected_figures_of(run), "page"):
        assert (CAPTIONS / f"{name}.rst").read_text("utf-8").strip(), name


def test_stages_that_are_off_say_so_and_the_same_run_gives_the_same_page(one_model):
    run = collect(one_model("ablation", scores=None))
    page = render_page(run)
    assert render_page(run).html == page.html
    assert page.html.count("Not run:") == 6  # scores and five applications
    assert "`applications.spurious` is not set in the configuration" in page.html
    assert {figure.name for figure in page.figures} == set(
        expected_figures(one_model("ablation", scores=None))
    )


def test_tables_may_be_empty_and_a_model_may_have_no_heads(one_model):
    run = collect(one_model("retrieval", "heatmaps"))
    absent = ("exactness", "top_images", "token_maps", "counterparts", "retrieval_examples")
    absent += ("rejected", "similarity")
    bare = {name: run[name].iloc[:0] for name in absent}
    bare["heatmaps"] = run["heatmaps"].assign(mass=float("nan"), area=float("nan"))
    for name in ("components", "labels", "scores", "roles"):
        bare[name] = run[name][run[name]["kind"] != "head"]
    page = render_page(dataclasses.replace(run, tables=dict(run.tables) | bare))
    assert "No file was rejected." in page.html
    assert "What the heads are about" in page.html
    assert "heat-on-object" not in {figure.name for figure in page.figures}


def labelling(run, **changes):
    """The figures of what texts explain and keep."""
    changed = dataclasses.replace(run, **changes)
    return meaning._explained(changed), truth._reconstruction(changed)


def test_random_texts_stand_beside_the_texts_where_the_reference_encodes_any(run):
    labels, rebuilt = run["labels"], run["reconstruction"]
    bare = {
        "labels": labels.assign(cumulative_random_texts=np.nan),
        "reconstruction": rebuilt[rebuilt["directions"] != "random_texts"],
    }
    for tables, there in (({}, True), (bare, False)):
        for figure in labelling(run, tables=dict(run.tables) | tables):
            assert ("random texts (dash-dotted)" in figure.caption.what) == there
            assert len(figure.panels) >= 3
            assert all(("random texts</text>" in panel.svg) == there for panel in figure.panels)
            assert all("random vectors</text>" in panel.svg for panel in figure.panels)


@pytest.mark.parametrize(("method", "name"), METHOD_NAMES.items())
def test_captions_name_the_method_that_chose_the_texts(run, method, name):
    scores = dict(run.config["scores"]) | {"method": method}
    for figure in labelling(run, config=dict(run.config) | {"scores": scores}):
        assert f"Texts are chosen by {name}, and" in figure.caption.how
        assert "projection" not in figure.caption.what


def test_of_texts_of_one_category_no_role_is_told(run):
    alike = dict(run.tables) | {"roles": run["roles"].assign(role=ONE_CATEGORY)}
    page = render_page(dataclasses.replace(run, tables=alike))
    assert "so no role can be told" in page.html
    assert "so no role can be told" not in render_page(run).html
    atlas = Outline(page.html).data["atlas"]
    assert json.loads(atlas)["roles"] == [NO_ROLE]


def test_the_caption_of_a_search_says_what_is_right_and_what_was_not_chosen(one_model):
    run = collect(one_model("retrieval"))

    def caption(**tables):
        page = render_page(dataclasses.replace(run, tables=dict(run.tables) | tables))
        return {figure.name: figure for figure in page.figures}["retrieval"].caption

    table, choices = run["retrieval"], run["retrieval_choices"]
    assert "4 by text and 4 by image" in caption().n and caption().caveat == ""
    own = table[table["feature"] == table["measured"]]
    near = own[own["query"] == "image"].assign(measured="label_neighbours", queries=50)
    words = own[own["query"] == "text"].assign(measured="label")
    words["queries"] = 1 + (words["feature"] == "shape")
    taken = choices.assign(queries=0, components=8)
    made = caption(retrieval=pd.concat([near, words]), retrieval_choices=taken)
    assert made.n.endswith("queries for each feature: 1 to 2 by text and 50 by image")
    assert f"among the {NEIGHBOURS} nearest to the probe’s" in made.caveat
    assert made.caveat.endswith(
        "Nothing to choose a way on: the images have no values of these features; the published "
        "way, 8 components."
    )
    some = pd.concat([choices[1:], taken[:1]])
    assert "a way on for colour by text: the images" in caption(retrieval_choices=some).caveat


def test_texts_of_users_stay_texts(one_model):
    run = collect(one_model("retrieval", "heatmaps", "spurious"))
    run = dataclasses.replace(run, tables={n: hostile(t) for n, t in run.tables.items()})
    outline = Outline(render_page(run).html)
    scripts = [found for tag, found in outline.elements if tag == "script"]
    assert len(scripts) == 4  # three blocks of data and the page's own
    assert not [found for tag, found in outline.elements if tag == "img" and "onerror" in found]
    texts = json.loads(outline.data["atlas"])["models"][0]["components"][0]["texts"]
    assert texts[0][0] == HOSTILE


def hostile(table):
    """The table with every free text of a user replaced by one that tries to break out."""
    free = ("caption", "label", "text", "category", "reason", "direction")
    return table.assign(**{name: HOSTILE for name in free if name in table})


def test_json_in_a_script_cannot_end_it():
    value = {"a": "</script><!--", "b": "\u2028 & é"}
    text = script_json(value)
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == value


def test_a_picture_that_is_gone_is_an_error(one_model, run):
    book = PictureBook(run.root, {"world": run.root / "nowhere"}, run["manifest"])
    book.image("world", run["manifest"]["image_id"].iloc[0])
    with pytest.raises(DataError, match="nowhere"):
        book.encode()
    with pytest.raises(ArtifactError, match="different runs"):
        book.image("world", "not-there.png")


def test_pictures_shrink_to_the_budget(run):
    book = PictureBook(run.root, run.folders, run["manifest"])
    for name in run["manifest"].query("dataset == 'world'")["image_id"]:
        book.image("world", name)
    full = sum(len(uri) for uri, _ in book.encode().values())
    small = sum(len(uri) for uri, _ in book.encode(budget=full // 3).values())
    assert small < full // 2
    with pytest.raises(ArtifactError, match="do not fit into 100 bytes"):
        book.encode(budget=100)


def test_a_page_that_grows_too_large_is_refused(one_model, monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match=r"would take .* MB"):
        write_report(collect(one_model(scores=None, maps=None)), tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_damaged_table_is_an_error(folder, tmp_path, one_model):
    path = folder / "scores" / "clip-small" / "world.scores.parquet"
    kept = path.read_bytes()
    table = read_table("scores", path)
    try:
        path.write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ArtifactError, match="world.scores.parquet"):
            collect(one_model())
    finally:
        write_table("scores", pd.DataFrame(table), path, PROVENANCE)
