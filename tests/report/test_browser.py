"""The page in headless Chromium, without a network."""

from __future__ import annotations

import dataclasses
import io
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.report.collect import collect
from pipeline_lib.report.page import write_report
from pipeline_lib.report.screenshots import main, missing_browser, open_browser, section_names

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(missing_browser()), reason=missing_browser() or "there is one"),
]

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def browser():
    with open_browser(1280, 900) as driver:
        yield driver


@pytest.fixture
def opened(browser, page):
    """The page, opened anew on a wide screen; no error may be left in the console."""
    resize(browser, 1280)
    show(browser, page)
    yield browser
    assert errors(browser) == []


def show(driver, page):
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(page.as_uri())


def resize(driver, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def errors(driver):
    """What the console says that is worse than a remark."""
    return [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def find(driver, selector):
    return driver.find_element("css selector", selector)


def find_all(driver, selector):
    return driver.find_elements("css selector", selector)


def shown(driver, selector):
    return [element for element in find_all(driver, selector) if element.is_displayed()]


def press(driver, *keys):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    chain = ActionChains(driver)
    for key in keys:
        chain.send_keys(getattr(Keys, key, key))
    chain.perform()


def choose(driver, control, value):
    from selenium.webdriver.support.ui import Select

    Select(find(driver, f"#{control}")).select_by_value(value)


def card(driver):
    return find(driver, "#card")


def test_every_section_is_shown(opened):
    names = section_names(opened)
    assert len(names) == 14
    for name in names:
        section = find(opened, f"#{name}")
        assert section.is_displayed() and section.size["height"] > 100, name
    links = [link.get_attribute("hash")[1:] for link in find_all(opened, ".top nav a")]
    assert links == names


def test_every_picture_is_drawn(opened):
    script = """
        const done = arguments[0];
        const all = [...document.images];
        all.forEach(image => { image.loading = 'eager'; });
        Promise.all(all.map(image => image.decode())).then(
            () => done(all.map(image => image.naturalWidth)), error => done(String(error)));
    """
    widths = opened.execute_async_script(script)
    assert isinstance(widths, list), widths
    assert len(widths) > 50 and min(widths) > 1


def test_a_component_opens_its_card(opened, run):
    part = find(opened, ".model-map[data-model=deit] .cell[data-id='blocks.5.attn/head1']")
    part.click()
    assert card(opened).get_attribute("open") is not None
    words = card(opened).text
    labels = run["labels"].query("model == 'deit' and id == 'blocks.5.attn/head1'")
    for text in labels["text"]:
        assert text in words
    headings = ("Role", "Top images", "Token maps", "Texts", "Direct effect")
    for heading in (*headings, "Share of each feature", "Most similar component of each model"):
        assert heading in words
    role = run["roles"].query("model == 'deit' and id == 'blocks.5.attn/head1'").iloc[0]
    assert f"{100 * role['share']:.0f}\u202f%" in find(opened, "#card").text
    assert f"q = {role['q_value']:.3f}" in find(opened, "#card").text
    assert len(find_all(opened, "#card img")) == 6
    other = find(opened, "#card .component[data-model=swin]")
    name = other.text
    other.click()
    assert find(opened, "#card h3").text == name
    assert "swin" in find(opened, "#card .where").text


DRAWN = """
    const done = arguments[1];
    const look = () => {
        const all = [...document.querySelectorAll(arguments[0])].map(canvas => {
            const [width, height] = [canvas.width, canvas.height];
            const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
            let colourful = 0, opaque = 0;
            for (let i = 0; i < data.length; i += 4) {
                opaque += data[i + 3] === 255;
                colourful += Math.abs(data[i] - data[i + 2]) > 40;
            }
            return [4 * opaque / data.length, 4 * colourful / data.length];
        });
        if (all.length && all.every(([opaque]) => opaque > 0.9)) done(all);
        else setTimeout(look, 50);
    };
    look();
"""


def test_a_card_draws_token_maps_over_three_images(opened):
    find(opened, ".model-map[data-model=deit] .cell[data-id='blocks.5.attn/head1']").click()
    drawn = opened.execute_async_script(DRAWN, "#card .token-maps canvas")
    assert len(drawn) == 3
    assert all(0.05 < colourful for _, colourful in drawn)  # a map, not the grey picture alone
    names = [canvas.get_attribute("aria-label") for canvas in find_all(opened, "#card canvas")]
    assert all("blocks.5.attn/head1" in name for name in names)


def test_a_component_without_patches_says_so(opened):
    find(opened, ".model-map[data-model=deit] .cell[data-id='blocks.5.mlp']").click()
    assert not find_all(opened, "#card canvas")
    assert "takes nothing from single patches" in card(opened).text


def test_the_first_screen_shows_what_it_says(opened):
    titles = [title.text for title in find_all(opened, ".findings h3")]
    assert titles == ["One feature, one head", "A cue taken out", "Search by one property"]
    assert len(opened.execute_async_script(DRAWN, ".exhibit canvas")) == 3
    assert len(shown(opened, ".exhibit .picture")) == 4
    assert shown(opened, ".exhibit .panel svg")


def test_a_text_of_an_image_leads_to_the_card_of_its_carrier(opened):
    carrier = find(opened, "#block-concept-codes .carriers .component")
    name = carrier.get_attribute("data-component")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", carrier)
    carrier.click()
    assert find(opened, "#card h3").text == name


def test_a_model_opens_level_by_level(opened):
    def branches():
        return [b.text.split("\n")[0] for b in shown(opened, "#block-tree .branch-title")]

    assert any(title.startswith("block 3") for title in branches())
    assert "object" not in branches()
    opened.execute_script(
        "document.querySelectorAll('#block-tree details').forEach(d => { d.open = true; })"
    )
    assert {"object", "background", "no patch"} <= {
        title.split(" a photo")[0] for title in branches()
    }


def test_focus_starts_with_the_skip_link_and_is_seen(opened):
    press(opened, "TAB")
    assert "skip" in opened.switch_to.active_element.get_attribute("class")
    assert opened.switch_to.active_element.rect["x"] >= 0
    for _ in range(12):
        press(opened, "TAB")
        active = opened.switch_to.active_element
        assert active.value_of_css_property("outline-style") == "solid"
        assert active.is_displayed()


def test_every_control_has_a_name(opened):
    find(opened, ".model-map[data-model=deit] .cell").click()
    script = """
        const named = (e) => (e.getAttribute('aria-label') || e.textContent || '').trim()
            || (e.labels && [...e.labels].map(l => l.textContent).join('').trim());
        const kinds = 'a, button, input, select, summary, [tabindex="0"]';
        const nameless = [...document.querySelectorAll(kinds)].filter(e => !named(e));
        return nameless.map(e => e.outerHTML.slice(0, 120));
    """
    assert opened.execute_script(script) == []
    assert opened.execute_script("return document.getElementById('card-title').textContent")


def test_a_card_can_be_reached_and_left_by_keyboard(opened):
    first = find(opened, ".model-map[data-model=deit] .cell")
    opened.execute_script("arguments[0].focus()", first)
    press(opened, "ARROW_DOWN", "ARROW_RIGHT")
    name = opened.switch_to.active_element.get_attribute("data-id")
    assert name == "blocks.0.attn/head1"
    assert find(opened, "#tip").is_displayed()
    assert "direct effect: " in find(opened, "#tip").text
    assert "% to " in find(opened, "#tip").text  # its interval
    press(opened, "ENTER")
    assert find(opened, "#card h3").text == name
    press(opened, "ARROW_RIGHT")
    assert find(opened, "#card h3").text == "blocks.0.attn/head2"
    press(opened, "ESCAPE")
    assert card(opened).get_attribute("open") is None
    assert opened.switch_to.active_element.get_attribute("data-id") == "blocks.0.attn/head2"


def test_a_link_to_a_component_opens_its_card(opened, page):
    show(opened, page.with_name("index.html"))
    opened.get("about:blank")
    opened.get(page.as_uri() + "#component=deit/blocks.5.attn%2Fhead1")
    assert find(opened, "#card h3").text == "blocks.5.attn/head1"


def test_search_finds_words_and_marks_them(opened, run):
    press(opened, "/")
    press(opened, *"red")
    labels = run["labels"]
    found = labels[labels["text"].str.contains(r"\bred\b")][["model", "id"]].drop_duplicates()
    assert 0 < len(found) < 40  # "checkered" is no match
    assert len(find_all(opened, ".cell:not(.off)")) == len(found)
    assert f"{len(found)} of {len(find_all(opened, '.cell'))}" in find(opened, "#atlas-count").text
    assert len(find_all(opened, "#atlas-results tbody tr")) == len(found)
    assert {mark.text for mark in find_all(opened, "#atlas-results mark")} == {"red"}
    find(opened, "#atlas-controls [type=reset]").click()
    assert not find_all(opened, ".cell.off") and not shown(opened, "#atlas-results")


def test_search_takes_signs_as_they_are(opened):
    for sign in "(.*[\\":
        find(opened, "#atlas-search").clear()
        find(opened, "#atlas-search").send_keys(sign)
        assert not find_all(opened, ".cell:not(.off)")


def test_filters_by_model_kind_and_role(opened):
    choose(opened, "atlas-model", "swin")
    assert [m.get_attribute("data-model") for m in shown(opened, ".model-map")] == ["swin"]
    choose(opened, "atlas-kind", "mlp")
    kept = find_all(opened, ".cell:not(.off)")
    assert [cell.get_attribute("data-id") for cell in kept] == [f"blocks.{b}.mlp" for b in range(4)]
    choose(opened, "atlas-kind", "")
    choose(opened, "atlas-role", "scene")
    rows = find_all(opened, "#atlas-results tbody tr")
    assert rows and all(row.find_elements("css selector", "td")[2].text == "scene" for row in rows)


def test_colours_follow_the_measure(opened, run):
    choose(opened, "atlas-measure", "score:colour")
    scores = run["scores"].query("feature == 'colour'")
    top = scores.loc[scores["score"].idxmax()]
    script = "return [...arguments[0]].map(c => [c.ariaLabel, c.style.getPropertyValue('--v')])"
    cells = find_all(opened, f".model-map[data-model='{top['model']}'] .cell")
    strength = {label: float(share) for label, share in opened.execute_script(script, cells)}
    label = max(strength, key=strength.get)
    assert label.startswith(top["id"]) and strength[label] == pytest.approx(1.0)
    assert f"{100 * top['score']:.1f}" in label


def test_tabs_by_keyboard(opened):
    tabs = find_all(opened, "#block-heatmaps [role=tab]")
    assert [tab.text for tab in tabs] == ["clip-small", "deit", "swin"]
    opened.execute_script("arguments[0].focus()", tabs[0])
    press(opened, "ARROW_RIGHT")
    assert tabs[1].get_attribute("aria-selected") == "true"
    panels = shown(opened, "#block-heatmaps [role=tabpanel]")
    assert [panel.get_attribute("aria-labelledby") for panel in panels] == ["tab-heatmaps-2"]


def test_a_table_sorts_by_number(opened):
    table = find(opened, "#block-best-components table")
    table.find_elements("css selector", "th button")[3].click()
    cells = find_all(opened, "#block-best-components tbody td:nth-child(4)")
    values = [float(cell.get_attribute("data-sort")) for cell in cells]
    assert values == sorted(values, reverse=True)


def test_rows_behind_a_figure_are_shown(opened, run):
    opened.execute_script("document.querySelector('[data-rows=segmentation]').open = true")
    rows = run["segmentation"]
    find(opened, "[data-rows=segmentation] table")
    assert len(find_all(opened, "[data-rows=segmentation] tbody tr")) == len(rows)


def saved(driver, selector):
    """Text of the file that a button saves."""
    script = """
        const [selector, done] = arguments;
        const make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then(done); return make.call(URL, blob); };
        document.querySelector(selector).click();
        URL.createObjectURL = make;
    """
    return driver.execute_async_script(script, selector)


def test_a_saved_table_holds_the_numbers(opened, run):
    read = pd.read_csv(io.StringIO(saved(opened, "[data-csv=segmentation]")))
    table = run["segmentation"]
    assert list(read.columns) == list(table.columns)
    np.testing.assert_allclose(read["miou"], table["miou"], rtol=1e-5)
    assert read["method"].tolist() == table["method"].tolist()


def test_a_saved_figure_stands_alone(opened):
    drawing = saved(opened, "[data-svg=ablation]")
    root = ElementTree.fromstring(drawing)
    assert len(root.findall("{*}svg")) == 3
    assert "var(--" not in drawing


def test_the_theme_can_be_chosen(opened):
    def surface():
        return find(opened, "body").value_of_css_property("background-color")

    light = surface()
    find(opened, "#theme").click()
    assert surface() == light
    find(opened, "#theme").click()
    assert surface() != light
    assert find(opened, "#theme").get_attribute("aria-label") == "Colours: dark"
    find(opened, "#theme").click()


def test_a_phone_has_no_sideways_scroll(opened, page):
    resize(opened, 400)
    show(opened, page)
    script = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert opened.execute_script(script) == [400, 400]
    find(opened, "#atlas-search").send_keys("ocean")
    hit = shown(opened, ".cell:not(.off)")[0]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", hit)
    hit.click()
    box = card(opened).rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= 400
    assert opened.execute_script(script) == [400, 400]
    find(opened, "#card [aria-label=Close]").click()
    assert card(opened).get_attribute("open") is None


def test_rows_of_tables_stay_low_on_a_phone(opened, page):
    """A cell with a long text is wide rather than tall: at most six lines."""
    resize(opened, 400)
    show(opened, page)
    script = """return [...document.querySelectorAll('.listing tbody tr')]
        .filter(row => row.clientHeight > 6.8 * parseFloat(getComputedStyle(row).lineHeight))
        .filter(row => !row.querySelector('.component'))
        .map(row => row.textContent.trim().slice(0, 60))"""
    assert opened.execute_script(script) == []


#: Texts too small to read, texts without contrast, and elements beyond the edges, where nothing
#: scrolls. Colours are compared as they are painted; a text over a drawing is not judged.
LOOK = """
    const width = document.documentElement.clientWidth, small = [], pale = [], beyond = [];
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (...colours) => {
        paint.clearRect(0, 0, 1, 1);
        colours.forEach(colour => { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); });
        return [...paint.getImageData(0, 0, 1, 1).data];
    };
    const light = colour => colour.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const above = element => element.parentElement
        ? [...above(element.parentElement), element] : [element];
    const name = e => `${(e.closest('[id]') || e).id}: ${e.textContent.trim().slice(0, 30)}`;
    for (const e of document.querySelectorAll('body *')) {
        const box = e.getBoundingClientRect(), style = getComputedStyle(e);
        if (!box.width || !box.height || e.closest('.skip')) continue;
        const line = above(e).slice(0, -1);
        const held = line.some(parent => getComputedStyle(parent).overflowX !== 'visible');
        if (!held && (box.left < -1 || box.right > width + 1)) beyond.push(name(e));
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
        const drawn = e.closest('svg'), grid = drawn && e.getScreenCTM();
        const size = parseFloat(style.fontSize) * (grid ? Math.hypot(grid.a, grid.b) : 1);
        if (size < 10) small.push(`${size.toFixed(1)} px ${name(e)}`);
        if (drawn) continue;
        const behind = above(e).map(parent => getComputedStyle(parent).backgroundColor);
        const [one, two] = [light(rgba(...behind)), light(rgba(...behind, style.color))];
        const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
        if (contrast < 4.5 && !e.matches('.mark')) pale.push(`${contrast.toFixed(1)} ${name(e)}`);
    }
    return {small, pale, beyond};
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_are_large_and_dark_enough_and_nothing_sticks_out(page, theme):
    with open_browser(1280, 900, theme) as driver:
        for width in (1280, 400):
            resize(driver, width)
            show(driver, page)
            nothing = {"small": [], "pale": [], "beyond": []}
            assert driver.execute_script(LOOK) == nothing, width


def test_a_dark_system_gets_a_dark_page(page):
    with open_browser(1280, 900, "dark") as driver:
        driver.get(page.as_uri())
        body = find(driver, "body").value_of_css_property("background-color")
        channels = [int(part) for part in body[body.index("(") + 1 : -1].split(",")[:3]]
        assert max(channels) < 60
        assert errors(driver) == []


def test_texts_of_users_do_nothing(browser, one_model, tmp_path):
    run = collect(one_model("retrieval"))
    free = ("caption", "label", "text", "category", "reason")
    tables = {
        name: table.assign(**{column: HOSTILE for column in free if column in table})
        for name, table in run.tables.items()
    }
    page = write_report(dataclasses.replace(run, tables=tables), tmp_path)
    show(browser, page)
    find(browser, ".cell[data-id='blocks.3.attn/head3']").click()
    assert HOSTILE in card(browser).text
    find(browser, "#card [aria-label=Close]").click()
    find(browser, "#atlas-search").send_keys("script")
    assert HOSTILE in find(browser, "#atlas-results").text
    assert browser.execute_script("return window.hacked") is None
    assert errors(browser) == []


def test_screenshots_from_the_command_line(page, tmp_path):
    arguments = [str(page), str(tmp_path), "--sections", "maps", "--width", "600"]
    assert main(arguments) == 0
    picture = tmp_path / "maps-light-600.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert main([str(page), str(tmp_path), "--sections", "mapps"]) == 1
    assert main([str(tmp_path / "none.html"), str(tmp_path)]) == 1
